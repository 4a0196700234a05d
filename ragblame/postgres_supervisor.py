"""The small detached process that owns one embedded server: starts, restarts and, unused, stops it.

It exists so that no client has to outlive the others: clients come, crash and go, and what tells the living
from the dead is a shared flock that the kernel releases whatever ends a process. Run by ``ragblame.postgres``
as ``python -m ragblame.postgres_supervisor HOME``; holds ``HOME/supervisor.lock`` for its whole life.
"""

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from ragblame import postgres_cluster as cluster
from ragblame.errors import EmbeddedPostgresError
from ragblame.postgres_binaries import Account, choose_account

CLIENTS_LOCK = "clients.lock"  # held shared by every client process
SUPERVISOR_LOCK = "supervisor.lock"
STATE_FILE = "state.json"

IDLE_SECONDS = 3.0  # without a client, before the server is stopped
TICK = 0.5  # seconds between looks; the server's death wakes us at once
STEADY_SECONDS = 60.0  # a server that ran this long has earned a full set of restarts again
MAX_RESTARTS = 5
LOG_LIMIT = 5_000_000  # bytes of server.log, and of server.log.1 before it
STOP_SIGNAL = signal.SIGUSR1  # stop although there are clients
BUSY = 3  # exit status: another supervisor owns the folder


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerState:
    """What the supervisor last said about its server."""

    state: str  # starting, ready, stopped, failed; interrupted: ended by a signal, clients start it again
    supervisor: int | None = None  # process ids
    server: int | None = None
    port: int | None = None  # kept across restarts, so that pools find the server again
    error: str | None = None  # when failed: one line with the next step


def read_state(home: Path) -> ServerState | None:
    """The state file, None when there is none or it was cut short by a full disk."""
    try:
        return ServerState(**json.loads((home / STATE_FILE).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_supervised(home: Path) -> bool:
    """Whether a living supervisor owns the folder: by its lock, not by a process id that may be reused."""
    try:
        descriptor = os.open(home / SUPERVISOR_LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def main(home: Path) -> int:
    """Take the folder's lock, detach, serve. The lock is taken before that: status 0 says that it is ours."""
    os.umask(0o077)
    lock = os.open(home / SUPERVISOR_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    for _ in range(100):  # clients look at the lock by taking it for an instant
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        time.sleep(0.02)
    else:
        return BUSY
    if os.fork() != 0:
        os._exit(0)  # the child keeps the lock, which belongs to the open file
    os.setsid()
    _detach(home)
    supervisor = _Supervisor(home, lock)
    try:
        supervisor.run()
    except EmbeddedPostgresError as error:
        supervisor.fail(str(error))
    except BaseException as error:
        traceback.print_exc()
        supervisor.fail(f"the embedded server's supervisor failed ({error!r}): see {home / 'server.log'}")
    return 0


def _detach(home: Path) -> None:
    """Standard streams to the log, so that no client's pipe or terminal is held open."""
    descriptor = os.open(home / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _trim_log(home: Path) -> None:
    """Keep the log of a long life from filling the disk; in place, because the server holds it open."""
    log = home / "server.log"
    with suppress(OSError):
        if log.stat().st_size > LOG_LIMIT:
            shutil.copyfile(log, home / "server.log.1")
            os.truncate(log, 0)


class _Supervisor:
    """State of one run; every method but ``run`` and ``fail`` is a step of it."""

    def __init__(self, home: Path, lock: int) -> None:
        self.home = home
        self.lock = lock
        self.clients = os.open(home / CLIENTS_LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        self.account: Account | None = None
        self.port: int | None = None
        self.server: subprocess.Popen[bytes] | None = None
        self.end_signals: list[int] = []  # filled by the signal handler
        self.log_start = 0
        self.wake, writer = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (STOP_SIGNAL, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_to_stop)

    def run(self) -> None:
        """Serve until the last client is gone, somebody asks us to stop, or the folder disappears."""
        before = read_state(self.home)
        self._write("starting")
        stop_leftovers(self.home / "data")
        self.account = choose_account(self.home / "data")
        cluster.create_cluster(self.home, self.account)
        if self.end_signals:
            return self._end()
        self.port = cluster.choose_port(self.home, before.port if before else None)
        self._start()
        is_ready, was_ready, failures, idle_since = False, False, 0, None
        ready_at = time.monotonic()
        while True:
            self._sleep(TICK if is_ready else 0.05)
            assert self.server is not None
            if not self._owns_folder():
                return self._stop_server(signal.SIGQUIT)  # there is nothing left to close in order
            if self.end_signals:
                return self._end()
            _trim_log(self.home)
            if self.server.poll() is not None:
                failures = 1 if is_ready and time.monotonic() - ready_at > STEADY_SECONDS else failures + 1
                is_ready = False
                self._restart(failures, was_ready)
                continue
            if not is_ready and cluster.is_ready(self.home, self.server.pid):
                is_ready = was_ready = True
                ready_at = time.monotonic()
                self._write("ready")
            idle_since = (idle_since or time.monotonic()) if self._is_alone() else None
            if (
                idle_since is not None
                and time.monotonic() - idle_since > IDLE_SECONDS
                and self._shut_the_door()
            ):
                return self._end()

    def fail(self, reason: str) -> None:
        """Say why, for the clients that wait; leave no server behind."""
        print(f"ragblame supervisor: {reason}", file=sys.stderr, flush=True)
        self._stop_server()
        self._write("failed", reason)

    def _start(self) -> None:
        assert self.port is not None
        with suppress(OSError):
            self.log_start = (self.home / "server.log").stat().st_size
        self.server = cluster.start_server(self.home, self.port, self.account)
        self._write("starting")

    def _restart(self, failures: int, was_ready: bool) -> None:
        """After a crash: clear what it left, then again on the same port, more patiently each time."""
        said = self._log_since_start()
        print(f"ragblame supervisor: the server ended, restart {failures}", file=sys.stderr, flush=True)
        if failures > (MAX_RESTARTS if was_ready else 2):
            raise EmbeddedPostgresError(cluster.describe_failure(said, self.home))
        stop_leftovers(self.home / "data")
        if "Address already in use" in said and (not was_ready or failures >= 3):
            self.port = cluster.choose_port(self.home)
        self._sleep(0.05 * 2**failures)
        self._start()

    def _end(self) -> None:
        """Orderly. A plain SIGTERM may be meant for the service of one client: the others start us again."""
        self._stop_server()
        is_wished = STOP_SIGNAL in self.end_signals or not self.end_signals
        self._write("stopped" if is_wished else "interrupted")

    def _stop_server(self, first: signal.Signals = signal.SIGINT) -> None:
        """Fast, then immediate, then by force: whatever happens, no process stays in the folder."""
        if self.server is not None and self.server.poll() is None:
            for number, patience in ((first, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                self.server.send_signal(number)
                _thaw(self.home / "data")
                with suppress(subprocess.TimeoutExpired):
                    self.server.wait(patience)
                    break
        if self._owns_folder():  # or these would be somebody else's, in a folder of the same name
            stop_leftovers(self.home / "data")

    def _is_alone(self) -> bool:
        """Whether no living process holds the clients' lock."""
        if not self._shut_the_door():
            return False
        fcntl.flock(self.clients, fcntl.LOCK_UN)
        return True

    def _shut_the_door(self) -> bool:
        """Take the clients' lock: new clients wait until we are gone. False when one is there."""
        try:
            fcntl.flock(self.clients, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _owns_folder(self) -> bool:
        """Whether our lock file is still the one in the folder; a deleted folder must not keep a server."""
        with suppress(OSError):
            return (self.home / SUPERVISOR_LOCK).stat().st_ino == os.fstat(self.lock).st_ino
        return False

    def _log_since_start(self) -> str:
        with suppress(OSError), (self.home / "server.log").open("rb") as log:
            log.seek(self.log_start)
            return log.read(100_000).decode("utf-8", "replace")
        return ""

    def _write(self, state: str, error: str | None = None) -> None:
        pid = self.server.pid if self.server is not None and self.server.returncode is None else None
        content = ServerState(state=state, supervisor=os.getpid(), server=pid, port=self.port, error=error)
        fresh = self.home / f"{STATE_FILE}.new"
        if not self._owns_folder():
            return
        try:
            fresh.write_text(json.dumps(asdict(content)), "utf-8")
            fresh.replace(self.home / STATE_FILE)
        except OSError:
            traceback.print_exc()

    def _ask_to_stop(self, number: int, _: object) -> None:
        self.end_signals.append(number)

    def _sleep(self, seconds: float) -> None:
        """Sleep, but wake for a signal: the server's death, or the wish that we stop."""
        if select.select([self.wake], [], [], seconds)[0]:
            os.read(self.wake, 1000)


def stop_leftovers(data: Path) -> None:
    """End every process that a dead supervisor or a killed server left in the data folder, gently first.

    Then a stale ``postmaster.pid`` is removed, because its number may by now be another program's.
    Raises ``EmbeddedPostgresError`` when one does not end.
    """
    for number, patience in ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
        if _until(partial(_has_emptied, data, number), patience):
            break
    else:
        raise EmbeddedPostgresError(
            f"processes {cluster.processes_in(data)} stay in {data}: end them by hand"
        )
    if cluster.HAS_PROC:
        (data / "postmaster.pid").unlink(missing_ok=True)


def _thaw(data: Path) -> None:
    """Let frozen processes go on, or they would hear of the shutdown only when killed."""
    for pid in cluster.processes_in(data):
        with suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def _has_emptied(data: Path, number: int) -> bool:
    """Signal what is in the folder; its server alone while that lives and may still end its own children."""
    leftovers = cluster.processes_in(data)
    server = cluster.recorded_pid(data)
    for target in [server] if server in leftovers and number != signal.SIGKILL else leftovers:
        with suppress(OSError):
            os.kill(target, number)
            os.kill(target, signal.SIGCONT)
    return not leftovers


def _until(condition: Callable[[], bool], patience: float) -> bool:
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
