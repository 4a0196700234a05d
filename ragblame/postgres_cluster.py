"""One embedded PostgreSQL data folder: its binaries, the account that runs them, initdb, the command line.

It exists because the binaries' own launcher makes parent folders world readable, leaks servers and never
restarts one; here nothing outside the folder changes mode. A *home* holds ``data/`` (the cluster), the
password and the log.
"""

import ctypes
import hashlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ragblame.errors import EmbeddedPostgresError
from ragblame.postgres_binaries import MAJOR, Account, find_binaries

ROLE = DATABASE = "ragblame"
SYSTEM_DIR = Path(
    "/var/lib/ragblame"
)  # root only: where a server goes whose own folder its account cannot reach
PORTS = range(20_000, 32_000)  # below the ephemeral range: a stopped server finds its port free again
HAS_PROC = Path("/proc/self/cwd").exists()
_PR_SET_PDEATHSIG = 1


def create_cluster(home: Path, account: Account | None) -> None:
    """Run initdb into ``home/data`` unless a cluster is there; all or nothing, also when killed half-way.

    Leaves ``home/password`` (mode 0600) with the password of the superuser ``ragblame``, and an empty
    database ``ragblame``. Raises ``EmbeddedPostgresError`` (disk full, other version, not a data folder).
    """
    data, password = home / "data", home / "password"
    binaries = find_binaries(account)
    if data.exists():
        check_cluster(data)
        if not password.exists():  # lost, say by a restored backup: whoever owns the folder may set a new one
            secret = secrets.token_urlsafe(24)
            _single_user(binaries, data, account, f"ALTER ROLE {ROLE} PASSWORD '{secret}'")
            _write_private(password, secret)
        return
    fresh = home / "data.new"
    shutil.rmtree(fresh, ignore_errors=True)
    secret = secrets.token_urlsafe(24)
    handed = home / "initdb.password"  # initdb reads it as the account, so it cannot be root's file
    try:
        fresh.mkdir(mode=0o700)
        _write_private(handed, secret)
        if account is not None:
            os.chown(fresh, account.uid, account.gid)
            os.chown(handed, account.uid, account.gid)
        command = [str(binaries / "initdb"), "-D", str(fresh), "-U", ROLE, "-A", "scram-sha-256"]
        command += [
            f"--pwfile={handed}",
            "-E",
            "UTF8",
            "--locale-provider=builtin",
            "--builtin-locale=C.UTF-8",
        ]
        _check(subprocess.run(command, capture_output=True, check=False, **_as(account)), home)
        _single_user(binaries, fresh, account, f"CREATE DATABASE {DATABASE}")
        _write_private(password, secret)
        fresh.rename(data)
    except OSError as error:
        raise EmbeddedPostgresError(describe_failure(str(error), home)) from error
    finally:
        handed.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)


def check_cluster(data: Path) -> None:
    """Raise ``EmbeddedPostgresError`` unless the folder is a cluster of our PostgreSQL version."""
    away = f"move {data} away to start afresh, or set RAGBLAME_DATABASE_URL to a server of your own"
    try:
        version = (data / "PG_VERSION").read_text("ascii", "replace").strip()
    except FileNotFoundError:
        raise EmbeddedPostgresError(
            f"{data} holds no PG_VERSION, so it is not a PostgreSQL folder: {away}"
        ) from None
    if version != MAJOR:
        raise EmbeddedPostgresError(
            f"{data} was made by PostgreSQL {version[:20]!r}, the embedded server is {MAJOR}: "
            f"dump and restore it with that version, or {away}"
        )


def server_command(home: Path, port: int, binaries: Path, settings: Mapping[str, str]) -> list[str]:
    """The command line: loopback TCP only, so no socket path can be too long and no folder is shared."""
    chosen = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "log_checkpoints": "off",
        "cluster_name": "ragblame",
    }
    if sys.platform == "linux":
        chosen["recovery_init_sync_method"] = "syncfs"  # after a crash: one call instead of a thousand files
    with suppress(OSError):  # a container's small /dev/shm fails parallel index builds
        shared = os.statvfs("/dev/shm")
        if shared.f_frsize * shared.f_blocks < 256 * 2**20:
            chosen["dynamic_shared_memory_type"] = "mmap"
    options = [part for item in (chosen | dict(settings)).items() for part in ("-c", "=".join(item))]
    return [str(binaries / "postgres"), "-D", str(home / "data"), *options]


def start_server(
    home: Path, port: int, account: Account | None, settings: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start ``postgres`` as our own child; it dies with the calling thread where the kernel can see to that.

    Output goes to ``home/server.log``. Returns at once: poll ``is_ready``.
    """
    command = server_command(home, port, find_binaries(account), settings or {})
    with (home / "server.log").open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=_die_with_parent(),
            **_as(account),
        )


def is_ready(home: Path, pid: int) -> bool:
    """Whether the server with this process id accepts connections, by the last line of its own pid file."""
    try:
        lines = (home / "data" / "postmaster.pid").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"


def recorded_pid(data: Path) -> int | None:
    """The server's process id by its pid file; after a crash it may be nobody's, or another program's."""
    try:
        return int((data / "postmaster.pid").read_text("utf-8", "replace").splitlines()[0])
    except (OSError, ValueError, IndexError):
        return None


def processes_in(data: Path) -> list[int]:
    """Process ids of the PostgreSQL processes that work in a data folder; off Linux its server's alone."""
    if not HAS_PROC:
        pid = recorded_pid(data)
        command = ["ps", "-p", str(pid), "-o", "command="]
        known = subprocess.run(command, capture_output=True, check=False).stdout.decode("utf-8", "replace")
        return [pid] if pid is not None and str(data) in known else []
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink() == data.resolve() and "postgres" in (entry / "exe").readlink().name:
                found.append(int(entry.name))
    return sorted(found)


def choose_port(home: Path, wanted: int | None = None) -> int:
    """A free loopback port: the wanted one, else one that depends on the folder, to stay the same."""
    start = int.from_bytes(hashlib.sha256(str(home).encode()).digest()[:4], "big") % len(PORTS)
    candidates: list[int] = [*PORTS[start:], *PORTS[:start]]
    for port in candidates if wanted is None else [wanted, *candidates]:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as PostgreSQL does
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
    raise EmbeddedPostgresError(f"no free port between {PORTS.start} and {PORTS.stop}: close some programs")


def describe_failure(output: str, home: Path) -> str:
    """One line for what initdb or the server said on its way down, with the next step."""
    if "No space left on device" in output or "Disk quota exceeded" in output:
        return (
            f"the disk that holds {home} is full: free some space, or set RAGBLAME_DATA_DIR to another disk"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [
        line for line in lines if any(word in line for word in ("PANIC:", "FATAL:", "error:", "could not"))
    ]
    said = (telling or lines or ["it said nothing"])[-1][-300:]
    if any(word in output for word in ("control file", "checkpoint record", "PANIC:", "invalid page")):
        return (
            f"the embedded database in {home / 'data'} is damaged ({said}): restore a backup, or move it away"
        )
    return f"the embedded server cannot start ({said}): see {home / 'server.log'}"


def _single_user(binaries: Path, data: Path, account: Account | None, statement: str) -> None:
    command = [str(binaries / "postgres"), "--single", "-j", "-D", str(data), "postgres"]
    done = subprocess.run(
        command, input=f"{statement};\n\n".encode(), capture_output=True, check=False, **_as(account)
    )
    _check(done, data.parent)


def _check(done: subprocess.CompletedProcess[bytes], home: Path) -> None:
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode != 0 or "ERROR: " in output:  # single-user mode exits 0 after a failed statement
        raise EmbeddedPostgresError(describe_failure(output, home))


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def _as(account: Account | None) -> dict[str, Any]:
    """Arguments that run a child as the account, in English and untouched by the caller's PG* variables."""
    kept = {name: os.environ[name] for name in ("PATH", "TZ") if name in os.environ}
    common: dict[str, Any] = {"cwd": "/", "env": kept | {"LC_ALL": "C"}, "umask": 0o077}
    return common | ({"user": account.uid, "group": account.gid, "extra_groups": []} if account else {})


def _die_with_parent() -> Callable[[], None] | None:
    """On Linux, what makes the kernel ask the child for a fast shutdown when its parent dies."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def arrange() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return arrange
