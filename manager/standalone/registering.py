"""Make a folder of this machine a storage domain, by the SPM's own command, and name it in settings files here."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from common.images.files import write_whole
from manager.cli.failures import CommandFailed
from manager.standalone.programs import inherited


def register(name: str, path: Path, pool: str) -> str:
    """Make a folder a storage domain of the pool, or check that it is one; return its id. Safe to repeat.

    Raises CommandFailed if it cannot be.
    """
    words = [sys.executable, "-m", "spm.register", name, str(path), "--pool", pool]
    done = subprocess.run(words, env=inherited(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last, _, hint = done.stderr.strip().rpartition("\n")
        code, _, message = last.rpartition("\n")[2].partition(": ")
        known = code if code.replace("_", "").isalpha() and code.islower() else "storage_unavailable"
        raise CommandFailed(known, f"storage domain {name}: {message or done.stderr.strip()}", hint)
    return done.stdout.strip()


def add_to_settings(file: Path, name: str, path: str) -> bool:
    """Name a storage domain in a settings file; return False if it stands there already. The file is replaced in one
    step, and keeps its mode. Raises CommandFailed if it cannot be, or has another path for it."""
    try:
        text, mode = file.read_text(encoding="utf-8"), file.stat().st_mode & 0o777
        known = tomllib.loads(text).get("storage_domains", {})
        if known.get(name) == path:
            return False
        if name in known:
            raise CommandFailed("settings_invalid", f"{file} has storage domain {name} at {known[name]}")
        line = f"{json.dumps(name)} = {json.dumps(path, ensure_ascii=False)}\n"
        head, found, tail = text.partition("[storage_domains]\n")
        new = f"{head}{found}{line}{tail}" if found else f"{text.rstrip()}\n\n[storage_domains]\n{line}"
        if tomllib.loads(new).get("storage_domains", {}).get(name) != path:
            raise CommandFailed(
                "settings_invalid", f"{file} has its storage domains in another form: add {line.strip()}"
            )
        write_whole(file, new, mode=mode)
    except (OSError, ValueError) as error:
        raise CommandFailed("settings_invalid", f"adding storage domain {name} to {file}: {error}") from error
    return True
