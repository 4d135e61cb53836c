"""What runs on every hypervisor for ever imports little."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("hostagent.guard", ("celery", "kombu", "redis", "pydantic", "cryptography", "sqlalchemy", "sqlite3")),
        ("hostagent.agent", ("celery", "kombu", "sqlalchemy", "fastapi", "httpx", "uvicorn")),
    ],
)
def test_imports(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(sorted(set({absent!r}) & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
