"""The example settings files in deploy/settings, made from the settings classes: every option with its own docstring.

An option stands as a comment without a blank after the `#`, so that the file as it is sets nothing.
"""

import ast
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.settings import SharedSettings
from hostagent.settings import HostSettings
from manager.settings import ManagerSettings
from spm.settings import SpmSettings

FOLDER: Final = Path(__file__).resolve().parents[1] / "deploy" / "settings"
WIDTH: Final = 110

FILES: Final[dict[str, tuple[type[SharedSettings], str]]] = {
    "manager.toml": (ManagerSettings, "Manager and API: /etc/livesnap/manager.toml"),
    "spm.toml": (SpmSettings, "SPM: /etc/livesnap/spm.toml"),
    "host.toml": (HostSettings, "Host agent and freeze guard: /etc/livesnap/host.toml"),
}

HEAD: Final = """\
{title}

Made by `python -m tests.docs` from the settings classes; the test suite compares. Every option is shown with its
default, as a comment: remove the `#` right before an option to set it. Environment variables win over this file
(LIVESNAP_ and the option's name in capitals). The file may hold secrets: mode 0600, owned by the user that the process
runs as.
"""

CHOSEN_THERE: Final = {"host_id": "h1", "storage_domains": {"main": "/srv/images"}}
"""Shown where the default is not one value, but found out on each machine, or empty."""
WITHOUT_DEFAULT: Final = {
    "broker_url_file": "/etc/livesnap/broker.url",
    "metrics_dir": "/var/lib/prometheus/node-exporter",
}


def example(name: str) -> str:
    """Return what an example file should hold."""
    settings, title = FILES[name]
    lines = [*_comment(HEAD.format(title=title))]
    tables: list[str] = []
    for owner, heading in ((SharedSettings, "every process"), (settings, "this process")):
        lines += ["", f"# ---- {heading} {'-' * (WIDTH - 8 - len(heading))}"]
        said = _docstrings(owner)
        for option in said:
            field = settings.model_fields[option]
            block = ["", *_comment(said[option]), *_option(option, field)]
            (tables if _is_table(field) else lines).extend(block)
    return "\n".join([*lines, *tables]) + "\n"


def as_set(text: str) -> str:
    """Return an example file's text with every option set."""
    return "\n".join(
        line[1:] if line.startswith("#") and line[1:2] not in ("", " ") else line for line in text.splitlines()
    )


def _docstrings(owner: type[SharedSettings]) -> dict[str, str]:
    """Return the docstring below each option of one class, in the order of the source."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef)
    found: dict[str, str] = {}
    for node, below in zip(body.body, [*body.body[1:], ast.Pass()], strict=True):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        assert isinstance(below, ast.Expr), f"{owner.__name__}.{node.target.id} says nothing of itself"
        assert isinstance(below.value, ast.Constant)
        found[node.target.id] = inspect.cleandoc(str(below.value.value))
    return found


def _comment(text: str) -> list[str]:
    paragraphs = text.strip().split("\n\n")
    lines = [line for part in paragraphs for line in (*textwrap.wrap(" ".join(part.split()), WIDTH), "")]
    return [f"# {line}".rstrip() for line in lines[:-1]]


def _is_table(field: FieldInfo) -> bool:
    return field.default_factory is dict


def _option(name: str, field: FieldInfo) -> list[str]:
    if _is_table(field):
        shown = CHOSEN_THERE[name]
        assert isinstance(shown, dict)
        return [f"#[{name}]", *(f"#{key} = {_toml(value)}" for key, value in shown.items())]
    if field.default is PydanticUndefined:
        return ["# Default: found out there. For example:", f"#{name} = {_toml(CHOSEN_THERE[name])}"]
    if field.default is None:
        return ["# Default: not set. For example:", f"#{name} = {_toml(WITHOUT_DEFAULT[name])}"]
    return [f"#{name} = {_toml(field.default)}"]


def _toml(value: Any) -> str:
    plain = value.get_secret_value() if isinstance(value, SecretStr) else value
    return json.dumps(str(plain) if isinstance(plain, Path) else plain, ensure_ascii=False)
