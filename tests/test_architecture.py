"""Hold the tree to the shape that CONTRIBUTING.md describes, where neither ruff nor import-linter can.

Every rule is a function from a parsed file to what it finds wrong there. Each is run twice: over the project, where it
must find nothing, and over a few lines that break it, where it must find something.
"""

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

from tests.collector import all_stays

pytestmark = pytest.mark.xdist_group("architecture")  # the files are parsed once, not once per worker

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = ("common", "hostagent", "manager", "spm")
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_POSITIONAL = 5

# These must be pure whatever their docstring says; any other module becomes so by saying "Pure" in its docstring.
PURE = (
    "common/clock.py",
    "common/errors.py",
    "common/ids.py",
    "common/units.py",
    "common/images/chain.py",
    "common/messaging/messages.py",
    "common/messaging/queues.py",
    "hostagent/vm_xml.py",
    "manager/flows/*.py",
)
SUBPROCESS_ALLOWED = ("common/images/qemu_img.py", "manager/standalone.py", "manager/standalone/*", "tests/*")
SLEEP_ALLOWED = (
    # Benches count over stretches of time, and stand in for what takes time.
    "tests/bench/fleet.py",
    "tests/bench/idle.py",
    "tests/bench/recovery.py",
    "tests/bench/simulated/guest.py",
    "tests/bench/simulated/worker.py",
    "tests/wait.py",
    "tests/chaos/faults.py",
)
FOREIGN_PROCESS_CALLS = frozenset(
    {"os.system", "os.popen", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"}
)


N = TypeVar("N", bound=ast.AST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One Python file: its path below the root, its text, its syntax tree and all nodes of that by their kind."""

    path: str
    text: str
    tree: ast.Module
    kinds: dict[type[ast.AST], list[ast.AST]]

    def of(self, kind: type[N]) -> list[N]:
        """Return every node of a kind, wherever in the file it stands."""
        return self.kinds.get(kind, [])  # type: ignore[return-value]


def parse(path: str, text: str) -> Source:
    tree = ast.parse(text, filename=path)
    kinds: dict[type[ast.AST], list[ast.AST]] = defaultdict(list)
    for node in ast.walk(tree):  # once for all rules
        kinds[type(node)].append(node)
    return Source(path=path, text=text, tree=tree, kinds=dict(kinds))


@cache
def read(file: Path) -> Source:
    return parse(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))


@cache
def sources() -> list[Source]:
    """Parse every Python file of the product and its tests, once for all rules."""
    folders = [ROOT / name for name in (*PRODUCT, "tests")]
    files = sorted(file for folder in folders for file in folder.rglob("*.py"))
    with all_stays():
        return [read(file) for file in files]


def is_among(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def functions(source: Source) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from source.of(ast.FunctionDef)
    yield from source.of(ast.AsyncFunctionDef)


def imported_modules(source: Source) -> Iterator[tuple[int, str]]:
    """Yield line and absolute module name of every import, wherever in the file it stands."""
    for node in source.of(ast.Import):
        yield from ((node.lineno, alias.name) for alias in node.names)
    for origin in source.of(ast.ImportFrom):
        if origin.level:
            yield origin.lineno, "." * origin.level + (origin.module or "")
        elif origin.module:
            yield origin.lineno, origin.module


@cache
def shown(node: ast.Attribute) -> str:
    """Return an attribute as it is written, such as `time.sleep`."""
    return ast.unparse(node)


def module_is_short(source: Source) -> Iterator[str]:
    lines = len(source.text.splitlines())
    if lines > MAX_MODULE_LINES:
        yield f"{source.path}: {lines} lines, at most {MAX_MODULE_LINES}"


def functions_are_short(source: Source) -> Iterator[str]:
    for node in functions(source):
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            yield f"{source.path}:{node.lineno}: {node.name} has {lines} lines, at most {MAX_FUNCTION_LINES}"


def parameters_are_few(source: Source) -> Iterator[str]:
    for node in functions(source):
        names = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args) if arg.arg not in ("self", "cls")]
        if len(names) > MAX_POSITIONAL:
            yield f"{source.path}:{node.lineno}: {node.name} takes {len(names)} by position, at most {MAX_POSITIONAL}"


NAMING = (
    *(ast.Name, ast.Attribute, ast.alias, ast.arg, ast.keyword),
    *(ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef),
)


def names_in(node: ast.AST) -> tuple[str, ...]:
    """Return the identifiers that this one node introduces or uses."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name) | ast.alias(asname=str(name)):
            return (name,)
        case ast.arg(arg=name) | ast.keyword(arg=str(name)):
            return (name,)
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return (name,)
        case _:
            return ()


def a_domain_is_named(source: Source) -> Iterator[str]:
    """libvirt's domain and a storage domain meet in this code: neither is ever just a "domain"."""
    named = (node for kind in NAMING for node in source.kinds.get(kind, ()))
    for node in named:
        for name in names_in(node):
            if name.lower() in ("domain", "domains", "dom"):
                line = getattr(node, "lineno", 0)
                yield f"{source.path}:{line}: {name!r}: say vm or storage_domain"


def processes_start_in_few_places(source: Source) -> Iterator[str]:
    if is_among(source.path, SUBPROCESS_ALLOWED):
        return
    for line, module in imported_modules(source):
        if module.split(".")[0] in ("subprocess", "pty", "pexpect"):
            yield f"{source.path}:{line}: imports {module}"
    for node in source.of(ast.Attribute):
        if (call := shown(node)) in FOREIGN_PROCESS_CALLS:
            yield f"{source.path}:{node.lineno}: uses {call}"


def nothing_is_mocked(source: Source) -> Iterator[str]:
    for line, module in imported_modules(source):
        if module in ("mock", "pytest_mock") or module.startswith("unittest.mock"):
            yield f"{source.path}:{line}: imports {module}"
    for origin in source.of(ast.ImportFrom):
        if origin.module == "unittest":
            yield f"{source.path}:{origin.lineno}: imports from unittest"
    for node in source.of(ast.Attribute):
        if shown(node) == "monkeypatch.setattr":
            yield f"{source.path}:{node.lineno}: patches an object; setenv and chdir are fine"


def no_test_sleeps(source: Source) -> Iterator[str]:
    if not source.path.startswith("tests/") or is_among(source.path, SLEEP_ALLOWED):
        return
    for node in source.of(ast.Attribute):
        if shown(node) == "time.sleep":
            yield f"{source.path}:{node.lineno}: sleeps; use tests.wait.eventually"
    for origin in source.of(ast.ImportFrom):
        if origin.module == "time" and "sleep" in [alias.name for alias in origin.names]:
            yield f"{source.path}:{origin.lineno}: imports sleep; use tests.wait.eventually"


def declares_itself_pure(source: Source) -> bool:
    """Tell whether a module promises to import the standard library and other pure modules only."""
    return is_among(source.path, PURE) or bool(re.search(r"\bPure\b", ast.get_docstring(source.tree) or ""))


@cache
def is_pure(module: str) -> bool:
    if module.split(".")[0] in sys.stdlib_module_names:
        return True
    stem = ROOT.joinpath(*module.split("."))
    files = [file for file in (stem.with_suffix(".py"), stem / "__init__.py") if file.is_file()]
    return any(declares_itself_pure(read(file)) for file in files)


def pure_modules_stay_pure(source: Source) -> Iterator[str]:
    if not declares_itself_pure(source):
        return
    imports = [(node.lineno, alias.name) for node in source.of(ast.Import) for alias in node.names]
    for node in source.of(ast.ImportFrom):
        origin = "." * node.level + (node.module or "")
        # "from common import ids" names a module, "from common.ids import VmId" names something in one.
        modules = [origin] if is_pure(origin) else [f"{origin}.{alias.name}" for alias in node.names]
        imports.extend((node.lineno, module) for module in modules)
    for line, module in imports:
        if not is_pure(module):
            yield f"{source.path}:{line}: {module} is neither standard nor pure"


def dataclasses_are_frozen(source: Source) -> Iterator[str]:
    if not source.path.startswith(PRODUCT):
        return
    for node in source.of(ast.ClassDef):
        for decorator in map(ast.unparse, node.decorator_list):
            options = set(re.findall(r"\w+=True", decorator))
            if re.match(r"(dataclasses\.)?dataclass\b", decorator) and not {"frozen=True", "slots=True"} <= options:
                yield f"{source.path}:{node.lineno}: {node.name} is not frozen and slotted"


Rule = Callable[[Source], Iterator[str]]
LONG_BODY = "".join(f"    x{n} = {n}\n" for n in range(MAX_FUNCTION_LINES))
# Each rule with a file that breaks it.
RULES: list[tuple[Rule, str, str]] = [
    (module_is_short, "spm/a.py", "x = 1\n" * (MAX_MODULE_LINES + 1)),
    (functions_are_short, "spm/a.py", f"def long():\n{LONG_BODY}"),
    (parameters_are_few, "spm/a.py", "def wide(self, a, b, c, d, e, f): ...\n"),
    (a_domain_is_named, "spm/a.py", "def show(domain): ...\n"),
    (a_domain_is_named, "spm/a.py", "show(storage.domain)\n"),
    (processes_start_in_few_places, "spm/a.py", "import subprocess\n"),
    (processes_start_in_few_places, "spm/a.py", "import os\nos.system('true')\n"),
    (nothing_is_mocked, "tests/a.py", "from unittest import mock\n"),
    (nothing_is_mocked, "tests/a.py", "def test(monkeypatch):\n    monkeypatch.setattr(a, 'b', 1)\n"),
    (no_test_sleeps, "tests/a.py", "import time\ntime.sleep(1)\n"),
    (no_test_sleeps, "tests/a.py", "from time import sleep\n"),
    (pure_modules_stay_pure, "manager/flows/a.py", "import sqlalchemy\n"),
    (pure_modules_stay_pure, "manager/flows/a.py", "from common.logs import log\n"),
    (pure_modules_stay_pure, "common/ids.py", "from . import logs\n"),
    (pure_modules_stay_pure, "common/a.py", '"""Rules. Pure."""\nimport structlog\n'),
    (dataclasses_are_frozen, "spm/a.py", "@dataclass(slots=True)\nclass A: ...\n"),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in RULES), ids=lambda rule: rule.__name__)
def test_project_keeps(rule: Rule) -> None:
    everything = sources()
    assert {source.path.split("/")[0] for source in everything} == {*PRODUCT, "tests"}
    found = [problem for source in everything for problem in rule(source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "text"), RULES, ids=[rule.__name__ for rule, _, _ in RULES])
def test_rule_sees_a_breach(rule: Rule, path: str, text: str) -> None:
    assert list(rule(parse(path, text)))


# For each import contract of pyproject.toml, in its order, a file that breaks it.
CONTRACT_BREACHES = {
    "common/a.py": "import manager\n",
    "spm/a.py": "import libvirt\n",
    "common/messaging/a.py": "from kombu import Queue\n",
    "hostagent/a.py": "import sqlalchemy\n",
    "manager/a.py": "import tests\n",
}


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)


def test_imports_keep_their_contracts() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_every_import_contract_can_be_broken(tmp_path: Path) -> None:
    for name in (*PRODUCT, "common/messaging"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert "0 broken" in lint_imports(tmp_path).stdout
    for name, text in CONTRACT_BREACHES.items():
        (tmp_path / name).write_text(text)
    assert f"Contracts: 0 kept, {len(CONTRACT_BREACHES)} broken" in lint_imports(tmp_path).stdout


# One example for each kind of line that no file may hold; in pieces, so that this file does not find itself.
PRIVATE_EXAMPLES = {
    "workplace": "/".join(["cd ", "work", "x"]),
    "superuser": "/".join(["cd ", "root", "x"]),
    "home": "/".join(["cd ", "home", "someone"]),
    "index": "-".join(["pip install -", "index", "url x"]),
    "links": "-".join(["pip install -", "find", "links x"]),
    "registry": "https://{}.example/simple".format("".join(["py", "pi"])),
}
PRIVATE = re.compile(
    r"(?<![\w.>})])/(work|root|home/\w+)/|(?<!\w)/home/\w+"
    r"|index[-]url|find[-]links"
    r"|https?://[^\s/]*(py[p]i|pythonhosted|artifactory|nexus)"
)


def committed_files() -> list[Path]:
    """List what git tracks or would add; a tree without git (an unpacked archive) is listed whole."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return [file for name in listed.split("\0") if name and (file := ROOT / name).is_file()]
    return [file for file in ROOT.rglob("*") if file.is_file() and not {".venv", "__pycache__"} & set(file.parts)]


def test_no_file_names_a_private_path_or_a_registry() -> None:
    files = committed_files()
    assert ROOT / "pyproject.toml" in files
    found = []
    for file in files:
        text = file.read_bytes().decode("utf-8", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            if PRIVATE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("line", PRIVATE_EXAMPLES.values(), ids=PRIVATE_EXAMPLES.keys())
def test_private_lines_are_seen(line: str) -> None:
    assert PRIVATE.search(line)
