"""Settings as TOML text. Pure."""

import json
from collections.abc import Mapping

Settings = Mapping[str, str | int | Mapping[str, str]]


def toml(settings: Settings) -> str:
    """Return settings as TOML. JSON's strings and numbers are TOML's too, but for DEL, which no value here holds."""
    plain = {name: value for name, value in settings.items() if not isinstance(value, Mapping)}
    tables = {name: value for name, value in settings.items() if isinstance(value, Mapping)}
    lines = [_pair(name, value) for name, value in plain.items()]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(_pair(key, value) for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _pair(name: str, value: str | int) -> str:
    return f"{json.dumps(name)} = {json.dumps(value, ensure_ascii=False)}"
