"""Stand-ins for what an isolated machine of the tests has not: systemd, a package manager's network, ssh.

    standin.py systemctl|apt-get|python3|pip|scp WORDS...

deploy/INSTALL.md says under "What was run" what each of them does and leaves out; keep both equal. Every one of them
fails for words that it does not know, so that a page which asks for more is seen.
"""

import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

UNITS: Final = Path("/etc/systemd/system")
STARTED: Final = Path("/run/standin")
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PSEUDO: Final = ("/proc", "/sys", "/dev", "/tmp")

#: prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN): what systemd does by a filter of system calls (from Linux 6.3 on).
REFUSE_WRITE_EXECUTE: Final = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)

MOUNTS: Final = """\
set -e
umask {umask}
mount --make-rprivate /
for path in {writable}; do [ ! -e "$path" ] || mount --bind "$path" "$path"; done
for path in {readonly}; do mount --bind "$path" "$path"; mount -o remount,bind,ro "$path"; done
exec "$@"
"""

Unit = dict[str, list[str]]


class Unknown(Exception):
    """The words are none that the stand-in carries out."""


# ---- systemctl -------------------------------------------------------------------------------------------------------


def systemctl(words: Sequence[str]) -> None:
    """Carry out `daemon-reload`, `enable --now`, `start`, `stop`, `restart` of units."""
    match words:
        case ["daemon-reload"]:
            return
        case ["enable", "--now", *names] if names:
            if any(not read_unit(name).get("WantedBy") for name in names):
                raise Unknown(f"one of {names} has no [Install]")
            acts: tuple[Callable[[str], None], ...] = (start,)
        case ["start" | "stop" | "restart" as verb, *names] if names:
            acts = {"start": (start,), "stop": (stop,), "restart": (stop, start)}[verb]
        case _:
            raise Unknown(f"systemctl {words}")
    for name in names:
        for act in acts:
            act(name)


def read_unit(name: str) -> Unit:
    """Return the options of a unit and its drop-ins; a repeated one adds, an empty one forgets what stood before."""
    name = name.removesuffix(".service")
    template, at, instance = name.partition("@")
    file = UNITS / f"{template}{at}.service"
    found: Unit = {}
    for path in (file, *sorted(file.with_name(f"{file.name}.d").glob("*.conf"))):
        for line in path.read_text().splitlines():
            option, equals, value = line.partition("=")
            if not equals or line.startswith(("#", ";")):
                continue
            said = value.strip().replace("%i", instance).replace("%H", socket.gethostname()).replace("%%", "%")
            found[option] = [*found.get(option, ()), said] if said else []
    return found


def last(unit: Unit, option: str, default: str = "") -> str:
    return unit.get(option, [default])[-1] if unit.get(option) else default


def each(unit: Unit, option: str) -> list[str]:
    return [word for value in unit.get(option, ()) for word in value.split()]


def environment(unit: Unit) -> dict[str, str]:
    found = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
    pairs = each(unit, "Environment")
    for name in each(unit, "EnvironmentFile"):
        path = Path(name.removeprefix("-"))
        if path.exists() or not name.startswith("-"):
            pairs += [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return {**found, **dict(pair.split("=", 1) for pair in pairs)}


def start(name: str) -> None:
    """Start a unit's ExecStart as far as it can be without systemd; one that runs is left alone."""
    if running(name):
        return
    unit = read_unit(name)
    user, settings = pwd.getpwnam(last(unit, "User", "root")), environment(unit)
    state = [Path("/var/lib") / folder for folder in each(unit, "StateDirectory")]
    for folder in state:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(int(last(unit, "StateDirectoryMode", "755"), 8))
        os.chown(folder, user.pw_uid, user.pw_gid)
    program = [re.sub(r"\$\{(\w+)\}", lambda found: settings[found[1]], word) for word in each(unit, "ExecStart")]
    words = ["unshare", "--mount", "sh", "-c", mounts(unit, state), "sh", *privileges(unit, user), *program]
    STARTED.mkdir(exist_ok=True)
    with (STARTED / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            words, env=settings, cwd="/", stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (STARTED / f"{name}.pid").write_text(str(process.pid))


def mounts(unit: Unit, state: Sequence[Path]) -> str:
    """Return the script that makes read-only what ProtectSystem= protects, and goes on as its arguments."""
    writable = [*(path.removeprefix("-") for path in each(unit, "ReadWritePaths")), *map(str, state)]
    umask = last(unit, "UMask", "0022")
    match last(unit, "ProtectSystem"):
        case "strict":
            script = MOUNTS.format(umask=umask, writable=" ".join(writable), readonly="")
            kept = "|".join([*writable, *(f"{path}|{path}/*" for path in PSEUDO)])
            each_mount = (
                'cut -d" " -f5 /proc/self/mountinfo | while read -r path; do case "$path" in '
                f'{kept}) ;; *) mount -o remount,bind,ro "$path";; esac; done\n'
            )
            return script.replace('exec "$@"', each_mount + 'exec "$@"')
        case "full":
            return MOUNTS.format(umask=umask, writable="", readonly="/usr /etc")
        case other:
            raise Unknown(f"ProtectSystem={other}")


def privileges(unit: Unit, user: pwd.struct_passwd) -> list[str]:
    """Return the words that put a program under a unit's user with its capabilities."""

    def capabilities(option: str) -> str:
        return ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in each(unit, option))])

    if last(unit, "NoNewPrivileges") != "yes" or last(unit, "MemoryDenyWriteExecute") != "yes":
        raise Unknown("a unit without NoNewPrivileges= or MemoryDenyWriteExecute=")
    ambient = capabilities("AmbientCapabilities")
    return [
        *("setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--init-groups", "--no-new-privs"),
        *(
            f"--bounding-set={capabilities('CapabilityBoundingSet')}",
            f"--inh-caps={ambient}",
            f"--ambient-caps={ambient}",
        ),
        *(sys.executable, "-c", REFUSE_WRITE_EXECUTE),
    ]


def running(name: str) -> int:
    """Return the pid of a unit that runs, else 0."""
    try:
        pid = int((STARTED / f"{name}.pid").read_text())
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pid


def stop(name: str) -> None:
    """Ask a unit to end and wait for it."""
    pid = running(name)
    if pid:
        os.kill(pid, 15)
        subprocess.run(["tail", f"--pid={pid}", "-f", "/dev/null"], check=True, timeout=60)


# ---- the others ------------------------------------------------------------------------------------------------------


def apt_get(words: Sequence[str]) -> None:
    """Fail unless the packages that are asked for are installed already."""
    match words:
        case ["install", "--yes", *packages] if packages:
            asked = ["dpkg-query", "-W", "-f", "${db:Status-Status} ${Package}\n", *packages]
            said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
            if sorted(said) != sorted(f"installed {package}" for package in packages):
                raise Unknown(f"not installed: {said}")
        case _:
            raise Unknown(f"apt-get {words}")


def python3(words: Sequence[str]) -> None:
    """Take `-m venv` for done: the environment is there."""
    match [word for word in words if word != "--system-site-packages"]:
        case ["-m", "venv", "/opt/livesnap"]:
            assert Path("/opt/livesnap/bin/celery").exists()
        case _:
            raise Unknown(f"python3 {words}")


def pip(words: Sequence[str]) -> None:
    """Look whether the extras exist and the constraints are there, in a copy of the repository."""
    match words:
        case ["install", "-c", "constraints.txt", what]:
            project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
            wanted = what.removeprefix(".[").removesuffix("]").split(",")
            if not Path("constraints.txt").exists() or not set(wanted) <= set(project["optional-dependencies"]):
                raise Unknown(f"pip {words}")
        case _:
            raise Unknown(f"pip {words}")


def scp(words: Sequence[str]) -> None:
    """Copy a file into another machine's root folder."""
    match words:
        case ["-p", source, target] if found := re.fullmatch(r"root@(\w+):(/.*)", target):
            holder = (Path(os.environ["STANDIN_MACHINES"]) / f"{found[1]}.pid").read_text()
            there = Path(f"/proc/{holder}/root{found[2]}")
            shutil.copyfile(source, there)
            shutil.copymode(source, there)
        case _:
            raise Unknown(f"scp {words}")


VERBS: Final[dict[str, Callable[[Sequence[str]], None]]] = {
    "systemctl": systemctl,
    "apt-get": apt_get,
    "python3": python3,
    "pip": pip,
    "scp": scp,
}

if __name__ == "__main__":
    VERBS[sys.argv[1]](sys.argv[2:])
