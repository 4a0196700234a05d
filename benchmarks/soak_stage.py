"""The stage of the fault soak: a server, a small disk for the spool, hosts, and what is done to them when.

Faults come in turn with calm between them, hosts are killed at random moments meanwhile, and every stretch of
time under one fault is noted as a window.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from own_server import OwnServer

from ragblame.plugin.spool_state import measure_spool

SEED: Final = 5
OUTAGES: Final = ("stopped", "frozen", "server killed", "spool full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How hard and for how long; seconds unless said otherwise."""

    rate: float = 108.0  # answers a second of each host: two that are killed now and then stay above 200
    spool_bytes: int = 64_000_000  # of the spool's disk where we may mount one, else the spool's own cap
    calm: tuple[float, float] = (4.0, 8.0)  # between two faults
    kills: tuple[float, float] = (12.0, 30.0)  # between two kills of a host
    stopped: float = 8.0
    frozen: float = 10.0
    killed: float = 4.0
    full: float = 25.0
    step: float = 2.0  # on each of three wrong clocks


QUICK: Final = Plan(
    rate=30.0,
    spool_bytes=3_000_000,
    calm=(1.0, 2.0),
    kills=(4.0, 8.0),
    stopped=2.0,
    frozen=5.0,
    killed=1.0,
    full=8.0,
    step=0.5,
)


@dataclass(slots=True)
class Host:
    """One client process and everything that outlives it when it is killed."""

    name: str
    is_control: bool
    process: "subprocess.Popen[str] | None" = None
    starts: list[float] = field(default_factory=list)  # monotonic seconds
    kills: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time under one fault."""

    name: str
    start: float  # monotonic seconds
    end: float


class Soak:
    """The stage: server, spool, hosts, and what was done to them when."""

    def __init__(self, plan: Plan, server: OwnServer, folder: Path, data_dir: Path, spool_cap: int) -> None:
        self.plan, self.server, self.folder, self.data_dir = plan, server, folder, data_dir
        self.hosts = [Host("a", False), Host("b", False), Host("control", True)]
        self.windows: list[Window] = []
        self.lock = threading.Lock()  # over killing, starting and ending hosts
        self.random = random.Random(SEED)
        self.environment = {
            **os.environ,
            "RAGBLAME_DATABASE_URL": server.url,
            "RAGBLAME_DATA_DIR": str(data_dir),
            "RAGBLAME_SPOOL_MAX_BYTES": str(spool_cap),
        }

    def start_host(self, host: Host) -> None:
        """Start it and wait until it answers."""
        command = [sys.executable, str(Path(__file__).with_name("soak_client.py"))]
        command += [str(self.folder), host.name, str(self.plan.rate)] + (
            ["--control"] if host.is_control else []
        )
        host.process = subprocess.Popen(
            command,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self.folder / f"{host.name}.log").open("a"),
            text=True,
        )
        assert host.process.stdout is not None
        if host.process.stdout.readline() != "ready\n":
            raise RuntimeError(f"host {host.name} does not start: {self.log(host)}")
        host.starts.append(time.monotonic())

    def log(self, host: Host) -> str:
        """What it printed."""
        return (self.folder / f"{host.name}.log").read_text("utf-8")[-2_000:]

    def tell(self, line: str) -> None:
        """A command to every host."""
        with self.lock:
            for host in self.hosts:
                assert host.process is not None
                assert host.process.stdin is not None
                host.process.stdin.write(f"{line}\n")
                host.process.stdin.flush()

    def kill_one(self) -> None:
        """kill -9 one of the captured hosts and start it again."""
        with self.lock:
            host = self.random.choice([host for host in self.hosts if not host.is_control])
            assert host.process is not None
            host.process.kill()
            host.process.communicate()
            host.kills += 1
            self.start_host(host)

    def end(self) -> dict[str, dict[str, Any]]:
        """Let every host flush and end; what each said last."""
        said = {}
        with self.lock:
            for host in self.hosts:
                assert host.process is not None
                output, _ = host.process.communicate(timeout=300)
                if host.process.returncode != 0:
                    raise RuntimeError(f"host {host.name} failed: {self.log(host)}")
                said[host.name] = json.loads(output)
        return said

    @contextmanager
    def window(self, name: str) -> Iterator[None]:
        """Note the time that passes inside, and for an outage until nothing waits on the spool."""
        start = time.monotonic()
        yield
        deadline = time.monotonic() + 60
        while name in OUTAGES and time.monotonic() < deadline:
            if measure_spool(self.data_dir / "spool").waiting_files == 0:
                break
            time.sleep(0.1)
        self.windows.append(Window(name, start, time.monotonic()))

    def calm(self) -> None:
        """Nothing happens."""
        with self.window("calm"):
            time.sleep(self.random.uniform(*self.plan.calm))

    def stop_server(self) -> None:
        """Its sessions end at once and it stays away."""
        self._take_away("stopped", self.plan.stopped)

    def freeze_server(self) -> None:
        """It keeps its connections and says nothing."""
        with self.window("frozen"):
            self.server.freeze()
            time.sleep(self.plan.frozen)
            self.server.thaw()

    def kill_server(self) -> None:
        """Every process of it dies at once; then it recovers from its log."""
        self._take_away("server killed", self.plan.killed, signal.SIGKILL)

    def fill_spool(self) -> None:
        """It stays away for longer than the spool has room."""
        self._take_away("spool full", self.plan.full)

    def _take_away(self, name: str, seconds: float, how: signal.Signals = signal.SIGINT) -> None:
        with self.window(name):
            self.server.stop(how)
            time.sleep(seconds)
            self.server.start()

    def step_clocks(self) -> None:
        """The hosts' clocks go 40 days ahead, two days back, and right again."""
        with self.window("clock stepped"):
            for days in (40, -2, 0):
                self.tell(f"clock {days * 86_400}")
                time.sleep(self.plan.step)

    def run(self, minutes: float) -> None:
        """All faults in turn until the time is over, each at least once; meanwhile hosts are killed."""
        until = time.monotonic() + minutes * 60
        is_over = threading.Event()
        killer = threading.Thread(target=self._kill_hosts, args=(is_over,))
        killer.start()
        faults: tuple[Callable[[], None], ...] = (
            self.stop_server,
            self.freeze_server,
            self.kill_server,
            self.step_clocks,
            self.fill_spool,
        )
        try:
            self.calm()
            is_first = True
            while is_first or time.monotonic() < until:
                for fault in faults:
                    if not is_first and time.monotonic() >= until:
                        break
                    fault()
                    self.calm()
                is_first = False
        finally:
            is_over.set()
            killer.join()

    def _kill_hosts(self, is_over: threading.Event) -> None:
        while not is_over.wait(self.random.uniform(*self.plan.kills)):
            self.kill_one()


@contextmanager
def spool_disk(data_dir: Path, size: int) -> Iterator[tuple[str, int]]:
    """A small disk for the spool where we may mount one; what was done, and the cap for the spool itself."""
    folder = data_dir / "spool"
    folder.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(folder)]
    is_mounted = False
    if shutil.which("mount") is not None:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        if is_mounted:
            yield f"a disk of {size / 1e6:.0f} MB that ran full", 8 * size
        else:
            yield f"a cap of {size / 1e6:.0f} MB", size
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=False)
