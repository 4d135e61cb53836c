"""Who a process is and whom it believes, by its settings: its own key, and the keys of those it listens to."""

from common.messaging.keys import Keyring, SigningKey
from common.messaging.queues import MANAGER
from common.settings import SharedSettings


def own_key(settings: SharedSettings, sender: str) -> SigningKey:
    """Return the key that the settings hold or name. Raises LivesnapError(settings_invalid)."""
    if pem := settings.private_key.get_secret_value():
        return SigningKey.parse(pem.encode(), sender, where="the setting private_key")
    return SigningKey.load(settings.key_file, sender)


def trusted(settings: SharedSettings) -> Keyring:
    """Return the public keys that the settings hold or name."""
    return Keyring(settings.keys_dir, told={MANAGER: settings.manager_key})
