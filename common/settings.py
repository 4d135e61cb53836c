"""Settings that every process shares. Each option: default, unit, why, when to change it.

Values come from the environment (`LIVESNAP_…`) over a TOML file that `LIVESNAP_CONFIG` names. No secret is ever an
argument: the process list is public.
"""

import os
import stat
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from common.errors import LivesnapError


def private_text(path: Path) -> str:
    """Return what a file with a secret holds; raise LivesnapError(settings_invalid) if it cannot be read, or if anybody
    but its owner can."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise LivesnapError("settings_invalid", f"{path} holds a secret and is open to others; make its mode 0600")
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise LivesnapError("settings_invalid", f"reading {path}: {error}") from error


class SharedSettings(BaseSettings):
    """Broker, keys and logs."""

    model_config = SettingsConfigDict(env_prefix="LIVESNAP_", env_nested_delimiter="__", extra="ignore", frozen=True)

    broker_url: str = Field(default="redis://127.0.0.1:6379/0")
    """Redis (`redis://`, `rediss://`, `redis+socket://`) or RabbitMQ (`amqp://`). Change it for a fleet."""

    broker_url_file: Path | None = Field(default=None)
    """A file (mode 0600) that holds the broker's URL with this process's own account; it wins over `broker_url`. Use it
    to keep the password out of the settings: `python -m common.provision accounts` writes such files."""

    key_file: Path = Field(default=Path("/etc/livesnap/own.key"))
    """This process's private Ed25519 key (PEM, mode 0600). Its public half stands in the others' `keys_dir`."""

    keys_dir: Path = Field(default=Path("/etc/livesnap/keys"))
    """Public keys of the senders this process listens to, one `<sender>.pub` each (`manager.pub`, `host.h1.pub`)."""

    private_key: SecretStr = Field(default=SecretStr(""))
    """The private key itself (PEM) instead of a `key_file`: then one settings file, mode 0600, is all that a machine
    gets. `livesnap host add` writes such files."""

    manager_key: str = Field(default="")
    """The Manager's public key itself (PEM) instead of a file in `keys_dir`, for the same reason."""

    log_format: str = Field(default="text", pattern="^(text|json)$")
    """`text` for people, `json` for collectors."""

    task_events: bool = Field(default=True)
    """Send Celery task events, for Flower, which without them knows nothing of this process. They take half as much CPU
    time again for each message, and a sign of life every 2 s; switch them off for hosts in fleets of hundreds."""

    metrics_dir: Path | None = Field(default=None)
    """Folder into which each worker process writes its figures for Prometheus, every 10 s, for the textfile collector
    of `prometheus-node-exporter`. Default: none are written. Give it on machines that Prometheus watches."""

    @model_validator(mode="before")
    @classmethod
    def _read_secrets(cls, data: Any) -> Any:
        """Take the broker's URL from its own file. Raises LivesnapError(settings_invalid) for files open to others."""
        config = os.environ.get("LIVESNAP_CONFIG")
        if config and isinstance(data, dict) and data.get("private_key"):
            private_text(Path(config))
        path = data.get("broker_url_file") if isinstance(data, dict) else None
        return {**data, "broker_url": private_text(Path(path)).strip()} if path else data

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file that LIVESNAP_CONFIG names."""
        config = os.environ.get("LIVESNAP_CONFIG")
        file_source = TomlConfigSettingsSource(settings_cls, toml_file=config) if config else None
        sources = (init_settings, env_settings)
        return (*sources, file_source) if file_source else sources
