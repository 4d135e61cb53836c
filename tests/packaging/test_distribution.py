"""What a hypervisor gets: the wheel is whole, and the extra `host` brings neither a web server nor a SQL library."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("common", "hostagent", "manager", "spm")
DISTRIBUTION_PYTHON = Path("/usr/bin/python3")
# One worker builds the wheel and the environment, once; a loaded machine may need more than the usual two minutes.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("distribution")]

# What a hypervisor must not be made to carry.
NOT_ON_HOSTS = ("alembic", "fastapi", "flower", "psycopg", "sqlalchemy", "starlette", "uvicorn")

# Run by the environment's own interpreter: import every module of the host's share, and say where things came from.
PROBE = """
import importlib, importlib.util, pkgutil, sys
for name in ("common", "hostagent"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
import celery, kombu, redis, structlog, pydantic, pydantic_settings, cryptography, libvirt
print("libvirt", libvirt.__file__)
print("hostagent", importlib.import_module("hostagent").__file__)
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    if spec is not None:
        print("found", name, spec.origin)
"""


def run(command: list[str], cwd: Path) -> str:
    """Run `command` and return its standard output; fail the test with everything it said."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def skip_or_fail(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy: setuptools writes beside what it builds."""
    base = tmp_path_factory.mktemp("wheel")
    copy = base / "tree"
    copy.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PRODUCT:
        shutil.copytree(ROOT / name, copy / name, ignore=leave)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(base / "out"), str(copy)]
    run(pip, cwd=base)
    (built,) = (base / "out").glob("livesnap-*.whl")
    return built


@pytest.fixture(scope="module")
def host_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Make the environment that deploy/packages.md describes for a hypervisor; return its interpreter."""
    if not DISTRIBUTION_PYTHON.exists():
        skip_or_fail(f"{DISTRIBUTION_PYTHON} is not there")
    base = tmp_path_factory.mktemp("host")
    asked = [str(DISTRIBUTION_PYTHON), "-c", "import importlib.metadata as m; print(m.version('libvirt-python'))"]
    if subprocess.run(asked, capture_output=True).returncode != 0:
        skip_or_fail("the distribution's libvirt binding (python3-libvirt) is not installed")
    run([str(DISTRIBUTION_PYTHON), "-m", "venv", "--system-site-packages", "env"], cwd=base)
    python = base / "env" / "bin" / "python"
    # constraints-libvirt.txt is left out, so that the distribution's binding satisfies the extra.
    pip = [str(python), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
    run([*pip, f"livesnap[host] @ {wheel.as_uri()}"], cwd=base)
    yield python
    shutil.rmtree(base)


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [file for name in PRODUCT for file in (ROOT / name).rglob("*") if file.is_file()]
    wanted = {file.relative_to(ROOT).as_posix() for file in files if "__pycache__" not in file.parts}
    assert wanted
    assert wanted - held == set()
    assert not {name for name in held if name.split("/")[0] == "tests"}


def test_host_extra_uses_the_distributions_binding(host_python: Path) -> None:
    said = run([str(host_python), "-I", "-c", PROBE, *NOT_ON_HOSTS], cwd=host_python.parent)
    environment = host_python.parents[1]
    binding = re.search(r"^libvirt (.*)$", said, re.M)
    assert binding
    assert not Path(binding[1]).is_relative_to(environment)
    # The distribution may have any of these for its own ends; what counts is what our install brought.
    brought = [line for line in said.splitlines() if line.startswith("found ") and str(environment) in line]
    assert brought == []


def test_host_extra_is_the_installed_one(host_python: Path) -> None:
    """Without this the test above could pass on modules of the checkout."""
    said = run([str(host_python), "-I", "-c", PROBE], cwd=host_python.parent)
    assert re.search(rf"^hostagent {re.escape(str(host_python.parents[1]))}/", said, re.M)
