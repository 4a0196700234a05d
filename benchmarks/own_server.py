"""A migrated PostgreSQL of a benchmark's own, which may be stopped, frozen and killed.

Durability is as PostgreSQL ships it (fsync on): what is measured is what a user would wait for.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ragblame import database, postgres_binaries, postgres_cluster


class OwnServer:
    """One server in a temporary folder, at one address for its whole life."""

    def __init__(self, home: Path, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self._settings = dict(settings or {})
        self._account = postgres_binaries.choose_account(home / "data")
        postgres_cluster.create_cluster(home, self._account)
        self.port = postgres_cluster.choose_port(home)
        self._process: subprocess.Popen[bytes] | None = None
        password = (home / "password").read_text("ascii")
        self.url = f"postgresql://ragblame:{password}@127.0.0.1:{self.port}/ragblame"

    def start(self, within: float = 120.0) -> None:
        """Start it and wait until it takes connections; raises ``TimeoutError`` after ``within`` seconds."""
        self._process = postgres_cluster.start_server(self.home, self.port, self._account, self._settings)
        deadline = time.monotonic() + within
        while not postgres_cluster.is_ready(self.home, self._process.pid):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server in {self.home} does not get ready: see its server.log")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: by default ending its sessions at once; SIGKILL is a crash of the whole server."""
        if self._process is None:
            return
        if how is signal.SIGKILL:
            for pid in postgres_cluster.processes_in(self.home / "data"):
                os.kill(pid, signal.SIGKILL)
        else:
            self._process.send_signal(how)
        self._process.wait(60)
        self._process = None

    def freeze(self) -> None:
        """Stop every process of it where it stands: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for pid in postgres_cluster.processes_in(self.home / "data"):
            os.kill(pid, number)


@contextmanager
def own_server(settings: Mapping[str, str] | None = None) -> Iterator[OwnServer]:
    """A started and migrated server; it and its folder are gone afterwards."""
    home = Path(tempfile.mkdtemp(prefix="ragblame-bench-"))
    home.chmod(0o711 if os.geteuid() == 0 else 0o700)
    server = OwnServer(home, settings)
    try:
        server.start()
        database.migrate(server.url)
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)
