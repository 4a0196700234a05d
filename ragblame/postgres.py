"""The embedded PostgreSQL as its users see it: one call returns a URL, and the server lives while it is used.

Chosen when no database is configured. Any number of processes share one server per data folder. A process is
counted by a shared lock that the kernel releases however the process ends; the server itself belongs to a
detached supervisor (``ragblame.postgres_supervisor``), which the clients replace should it be killed.
"""

import errno
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ragblame import postgres_binaries as binaries
from ragblame import postgres_cluster as cluster
from ragblame.errors import EmbeddedPostgresError

try:
    import fcntl

    from ragblame import postgres_supervisor as supervisor
except ImportError:  # Windows has no flock
    if sys.platform != "win32":
        raise

START_TIMEOUT = 300.0  # seconds: crash recovery of a large database takes its time
_log = logging.getLogger(__name__)
_guard = threading.Lock()
_presence: dict[
    Path, int
] = {}  # home -> descriptor that holds the clients' lock, for the life of this process
_watched: set[Path] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What is known about the embedded server of a data folder, without starting it."""

    home: Path  # where its files are
    state: str  # absent, stopped, starting, ready or failed
    port: int | None
    server_pid: int | None
    supervisor_pid: int | None
    error: str | None  # when failed: one line with the next step


def ensure_running(data_dir: Path, *, timeout: float = START_TIMEOUT) -> str:
    """Start the data folder's server, or find it running, and return its URL (password included).

    This process then counts as a user of the server until it ends, and so do its forks. Cheap to call again,
    and the way back when the server was stopped meanwhile. ``timeout`` in seconds.
    Raises ``EmbeddedPostgresError``: binaries missing, folder not ours, disk full, damaged cluster.
    """
    if sys.platform == "win32":
        raise EmbeddedPostgresError(
            "the embedded server needs Linux or macOS: set RAGBLAME_DATABASE_URL instead"
        )
    deadline = time.monotonic() + timeout
    with _guard:
        home = find_home(data_dir)
        binaries.find_binaries(binaries.choose_account(home / "data"))  # the commonest fault comes first
        try:
            _make_home(home, data_dir)
            _be_present(home, deadline)
            port = _await_ready(home, deadline)
            _watch(home)
            return _url(home, port)
        except OSError as error:
            raise EmbeddedPostgresError(cluster.describe_failure(str(error), home)) from error


def stop(data_dir: Path, *, timeout: float = 60.0) -> None:
    """Stop the data folder's server now, also under other clients; nothing happens when it does not run.

    Raises ``EmbeddedPostgresError`` when it does not stop in ``timeout`` seconds.
    """
    home = find_home(data_dir)
    deadline = time.monotonic() + timeout
    while sys.platform != "win32" and supervisor.is_supervised(home):
        state = supervisor.read_state(home)
        if state is not None and state.supervisor is not None and _is_supervisor(state.supervisor):
            os.kill(state.supervisor, supervisor.STOP_SIGNAL)
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(f"the embedded server does not stop: see {home / 'server.log'}")
        time.sleep(0.1)
    with _guard:
        descriptor = _presence.pop(home, None)
        if descriptor is not None:
            os.close(descriptor)


def status(data_dir: Path) -> ServerStatus:
    """Look at the data folder's server without starting or disturbing it."""
    home = find_home(data_dir)
    is_supervised = sys.platform != "win32" and supervisor.is_supervised(home)
    state = supervisor.read_state(home) if sys.platform != "win32" else None
    if state is None:
        word = "starting" if is_supervised else "stopped" if (home / "data").exists() else "absent"
    elif is_supervised or state.state == "failed":
        word = state.state
    else:
        word = "stopped"
    return ServerStatus(
        home=home,
        state=word,
        port=state.port if state else None,
        server_pid=state.server if state and is_supervised else None,
        supervisor_pid=state.supervisor if state and is_supervised else None,
        error=state.error if state else None,
    )


def find_home(data_dir: Path) -> Path:
    """Where the server of a data folder keeps its files.

    ``data_dir/postgres``; but as root, when the server's account cannot walk to there (``/root`` is closed,
    and we open nobody's folders), one under ``/var/lib/ragblame``. Once a cluster exists it stays in place.
    """
    data_dir = Path(os.path.realpath(data_dir.expanduser()))
    own = data_dir / "postgres"
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return own
    digest = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    elsewhere = binaries.SYSTEM_DIR / f"postgres-{digest}"
    for home in (own, elsewhere):
        if (home / "data").exists():
            return home
    return own if binaries.can_traverse(data_dir, binaries.choose_account(own / "data")) else elsewhere


def _make_home(home: Path, data_dir: Path) -> None:
    """Create the folder, closed to others; only as root may the server's account pass through it."""
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        missing = [folder for folder in (home, *home.parents) if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            folder.chmod(mode)  # whatever the umask says: a strict one would shut the account out
        if missing and home.parent == binaries.SYSTEM_DIR:
            _log.warning("%s is closed to the server's account: its data goes to %s", data_dir, home)
        owner = home.stat().st_uid
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise EmbeddedPostgresError(
            f"{home} cannot be made ({error.strerror}): set RAGBLAME_DATA_DIR to a folder that you can write"
        ) from error
    if owner != os.geteuid() or not os.access(home, os.W_OK | os.X_OK):
        raise EmbeddedPostgresError(
            f"{home} belongs to user {owner}, we are {os.geteuid()}: run as its owner, or set "
            "RAGBLAME_DATA_DIR to a folder of your own"
        )


def _be_present(home: Path, deadline: float) -> None:
    """Hold the clients' lock; waits while a supervisor that saw nobody is shutting its server down."""
    held = _presence.get(home)
    path = home / supervisor.CLIENTS_LOCK
    if held is not None:
        with suppress(OSError):
            if os.fstat(held).st_ino == path.stat().st_ino:
                return
        os.close(_presence.pop(home))  # the folder was deleted and made again
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _flock(descriptor, fcntl.LOCK_SH, deadline, home)
    except BaseException:
        os.close(descriptor)
        raise
    _presence[home] = descriptor


def _await_ready(home: Path, deadline: float) -> int:
    """Wait for the server, starting a supervisor whenever none lives; returns the port."""
    started = 0
    while True:
        is_supervised = supervisor.is_supervised(home)  # before the state: without one, the state is final
        state = supervisor.read_state(home)
        if not is_supervised:
            if started and state is not None and state.state == "failed":
                raise EmbeddedPostgresError(
                    state.error or "the embedded server failed: run `ragblame doctor`"
                )
            if started >= 3:
                raise EmbeddedPostgresError(_silent_death(home))
            started += 1
            _start_supervisor(home, deadline)
        elif state is not None and state.state == "ready" and state.port and _is_supervisor(state.supervisor):
            return state.port
        if time.monotonic() > deadline:
            raise EmbeddedPostgresError(
                "the embedded server is not ready yet; after a crash it may still be recovering: look at "
                f"{home / 'server.log'} and try again"
            )
        time.sleep(0.03)


def _start_supervisor(home: Path, deadline: float) -> None:
    """Start one, unless another client is faster. Returns when its lock is held, by ours or by another."""
    guard = os.open(home / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _flock(guard, fcntl.LOCK_EX, deadline, home)
        if supervisor.is_supervised(home):
            return
        with suppress(OSError):  # what an earlier one died of must not be taken for this one's fate
            state = supervisor.read_state(home)
            if state is not None and state.state == "failed":
                (home / supervisor.STATE_FILE).unlink()
        # -P: the working folder "/" must not shadow a module; no descriptor of ours is inherited, so that it
        # does not count as a client
        command = [sys.executable, "-P", "-m", supervisor.__name__, str(home)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd="/", check=False)
        if done.returncode not in (0, supervisor.BUSY):
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise EmbeddedPostgresError(
                f"the embedded server's supervisor cannot start ({said[-1] if said else done.returncode}): "
                f"check that {sys.executable} can import ragblame"
            )
    finally:
        os.close(guard)


def _watch(home: Path) -> None:
    """Replace the supervisor should it be killed while we live, so that pools find their server again."""
    if home in _watched:
        return
    _watched.add(home)
    threading.Thread(target=_guard_supervisor, args=(home,), name="ragblame-postgres", daemon=True).start()


def _guard_supervisor(home: Path) -> None:
    """Sleep in the kernel on the supervisor's lock: having got it, it is gone. Ends with its orderly end."""
    try:
        while True:
            descriptor = os.open(home / supervisor.SUPERVISOR_LOCK, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            finally:
                os.close(descriptor)
            time.sleep(random.uniform(0.0, 0.2))  # every client wakes at once; one start is enough
            with _guard:  # not between a start by ensure_running and its wish to have it watched
                state = supervisor.read_state(home)
                if state is None or state.state in ("stopped", "failed") or home not in _presence:
                    return _watched.discard(home)
                _start_supervisor(home, time.monotonic() + 30.0)
    except (OSError, EmbeddedPostgresError) as error:
        _log.error("the embedded server lost its supervisor and gets no new one: %s", error)
        _watched.discard(home)


def _flock(descriptor: int, mode: int, deadline: float, home: Path) -> None:
    """Take a lock by polling, so that a frozen holder gives an error and not a hang."""
    while True:
        try:
            return fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise EmbeddedPostgresError(
                    f"another process holds the locks of {home}: run `ragblame doctor`, or end it"
                ) from None
            time.sleep(0.02)


def _is_supervisor(pid: int | None) -> bool:
    """Whether a recorded process id is still a supervisor's; a killed one leaves its number to anybody."""
    if pid is None:
        return False
    try:
        if cluster.HAS_PROC:
            return supervisor.__name__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _silent_death(home: Path) -> str:
    """Why a supervisor may have ended without a word: the usual reason is that none could be written."""
    if shutil.disk_usage(home).free < 1_000_000:
        return cluster.describe_failure("No space left on device", home)
    return f"the embedded server's supervisor ended without a word: see {home / 'server.log'}"


def _url(home: Path, port: int) -> str:
    """The libpq URL. With require_auth nobody who took the port can ask us for the bare password."""
    import psycopg

    password = (home / "password").read_text("ascii").strip()
    extra = "?require_auth=scram-sha-256" if psycopg.pq.version() >= 160_000 else ""
    return f"postgresql://{cluster.ROLE}:{password}@127.0.0.1:{port}/{cluster.DATABASE}{extra}"


def _after_fork() -> None:
    """A fork inherits the presence, but neither the watching thread nor the state of a lock."""
    global _guard
    _guard = threading.Lock()
    _watched.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
