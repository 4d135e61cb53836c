"""What runs for ever, on every hypervisor most of all, imports little; so does what everybody waits for at a start."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
SERVERS = ("fastapi", "flower", "httpx", "starlette", "typer", "uvicorn")


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hostagent.guard", ("celery", "kombu", "redis", "pydantic", "cryptography", "sqlalchemy", "sqlite3")),
        ("hostagent.agent", ("celery", "kombu", "sqlalchemy", "fastapi", "httpx", "uvicorn")),
        ("hostagent.worker", (*SERVERS, "alembic", "sqlalchemy", "sqlalchemy.dialects")),
        (
            "common.messaging.start_worker, celery.apps.worker",
            ("celery.bin.celery", "flower", "prompt_toolkit", "sqlalchemy"),
        ),
        ("spm.worker", (*SERVERS, "alembic", "sqlalchemy", "libvirt")),
        ("spm.register", (*SERVERS, "alembic", "celery", "kombu", "libvirt", "pydantic", "sqlalchemy")),
        ("manager.worker", (*SERVERS, "alembic", "libvirt")),
        ("manager.api.__main__", ("alembic", "flower", "libvirt", "typer")),
        ("manager.standalone", (*SERVERS, "alembic", "celery", "kombu", "libvirt", "pydantic", "redis", "sqlalchemy")),
    ],
)
def test_imports(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
