"""The programs of a standalone instance: their command lines, and how they find their settings."""

import os
import shutil
import sys
from collections.abc import Mapping

from manager.standalone.child import Program
from manager.standalone.layout import StateDir
from manager.standalone.prepare import Prepared

WORKERS, GUARD, BROKER = range(3)
"""The waves of stopping: whoever works for a guest ends first; the guard, which thaws for them, after them; what they
speak through last."""

_SET_BY_FILE = (
    "BROKER_URL",
    "CONFIG",
    "DATABASE_URL",
    "HOST_ID",
    "HTTP_HOST",
    "HTTP_PORT",
    "KEYS_DIR",
    "KEY_FILE",
    "LIBVIRT_URI",
    "POOL",
    "STATE_DIR",
    "STORAGE_DOMAINS",
    "TOKEN",
    "TOKEN_FILE",
    "URL",
)


def programs(state: StateDir, prepared: Prepared) -> tuple[Program, ...]:
    """Return what to run, in the order of starting."""

    def configured(name: str) -> Mapping[str, str]:
        return {"LIVESNAP_CONFIG": str(state.settings / f"{name}.toml")}

    def module(name: str, *words: str) -> tuple[str, ...]:
        return (sys.executable, "-m", name, *words)

    def worker(app: str, threads: int, node: str) -> tuple[str, ...]:
        return module("common.messaging.start_worker", app, f"{node}@{prepared.host}", str(threads))

    broker = [] if prepared.redis_conf is None else [_redis(str(prepared.redis_conf))]
    flower = [_flower(state, prepared, configured("flower"))] if prepared.flower_port else []
    return (
        *broker,
        Program(name="guard", words=module("hostagent.guard"), wave=GUARD, settings=configured("host")),
        Program(name="host", words=worker("hostagent.worker", 4, "host"), wave=WORKERS, settings=configured("host")),
        # Two: SQLite has one writer at a time, and four threads that queue for it take an eighth more of the processor.
        Program(
            name="manager", words=worker("manager.worker", 2, "manager"), wave=WORKERS, settings=configured("manager")
        ),
        Program(name="api", words=module("manager.api"), wave=WORKERS, settings=configured("manager")),
        Program(name="spm", words=worker("spm.worker", 2, "spm"), wave=WORKERS, settings=configured("spm")),
        *flower,
    )


def inherited() -> dict[str, str]:
    """Return the environment for all programs: the caller's, without what their settings files say.

    Other settings (LIVESNAP_HELD_LIMIT_S, …) thus reach them from the command line of `livesnap standalone`.
    """
    hidden = {f"LIVESNAP_{name}" for name in _SET_BY_FILE}
    # Of Flower's options nothing is inherited: one of them would open it to everybody.
    return {name: value for name, value in os.environ.items() if name not in hidden and not name.startswith("FLOWER_")}


def _flower(state: StateDir, prepared: Prepared, configured: Mapping[str, str]) -> Program:
    """Return Flower, read-only and on loopback (common/flower.py); its password stands in its environment."""
    password = state.flower_password.read_text(encoding="utf-8").strip()
    words = (sys.executable, "-m", "celery", "-A", "common.flower", "flower", f"--port={prepared.flower_port}")
    settings = {**configured, "FLOWER_BASIC_AUTH": f"livesnap:{password}"}
    return Program(name="flower", words=words, wave=WORKERS, settings=settings)


def _redis(conf: str) -> Program:
    return Program(name="redis", words=(shutil.which("redis-server") or "redis-server", conf), wave=BROKER)
