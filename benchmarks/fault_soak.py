"""Capture under faults: nothing acknowledged is lost or doubled, no chain fails, none waits.

Two captured hosts and a third that is not captured (the control) answer at the same rate on the same machine.
Meanwhile PostgreSQL is stopped, frozen, killed and kept away until the spool's disk is full; the hosts are
killed at random moments, and their clocks are set wrong. *Acknowledged* means: the recorder told ``on_safe``
that a trace was committed by PostgreSQL or synced to the spool, and its id was then appended to a ledger and
that synced. What a killed host still held in memory was never acknowledged; how much that was is told in the
table, too, and so is what was dropped because the spool was full. *Added latency* is the 99th percentile of
the captured hosts' answers minus that of the control's in the same windows; an outage's window ends when the
replay of what was spooled is over. The chain is as light as a real one can be: hosts that leave no processor
idle would measure the queue for processors. Where they do, capture's own work makes answers wait in calm
windows, too: what of it an outage adds is told beside the whole, and so is the time that answers spent inside
our callbacks, where they would wait for us if anywhere. At the end everything is replayed, and the ledgers
are held against the tables: every id once, with all its chunks and one job.
With `--quick` every fault comes once, shortly, at a lower rate: that checks exactness, not latency.
Run: python benchmarks/fault_soak.py [--minutes 20 | --quick] [--json] [--write]
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
from evidence import bar, report
from numpy.typing import NDArray
from own_server import OwnServer, own_server
from pydantic import SecretStr
from soak_client import CHUNKS

from ragblame import database
from ragblame.plugin.spool_state import inspect_spool, measure_spool
from ragblame.plugin.writer import Writer
from ragblame.settings import Settings

SEED: Final = 5
STARTING_SECONDS: Final = 4.0  # a host that was just started loads its driver in the background
OUTAGES: Final = ("stopped", "frozen", "server killed", "spool full")
PACKAGES: Final = ("langchain-core", "psycopg")


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
        with self.window("stopped"):
            self.server.stop()
            time.sleep(self.plan.stopped)
            self.server.start()

    def freeze_server(self) -> None:
        """It keeps its connections and says nothing."""
        with self.window("frozen"):
            self.server.freeze()
            time.sleep(self.plan.frozen)
            self.server.thaw()

    def kill_server(self) -> None:
        """Every process of it dies at once; then it recovers from its log."""
        with self.window("server killed"):
            self.server.stop(signal.SIGKILL)
            time.sleep(self.plan.killed)
            self.server.start()

    def fill_spool(self) -> None:
        """It stays away for longer than the spool has room."""
        with self.window("spool full"):
            self.server.stop()
            time.sleep(self.plan.full)
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


# What came of it --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tally:
    """The ledgers against the tables."""

    acknowledged: int
    lost: int  # acknowledged and not stored
    doubled: int  # questions stored twice, traces with two jobs, or ids twice
    partial: int  # traces without all their chunks or their job
    answered: int
    stored: int
    pending: int  # left on the spool


def drain(server: OwnServer, data_dir: Path) -> None:
    """What killed hosts left on the spool, a later process brings home: here, we."""
    writer = Writer(Settings(database_url=SecretStr(server.url), data_dir=data_dir))
    deadline = time.monotonic() + 120
    while not writer.replay(everything=True) and time.monotonic() < deadline:
        time.sleep(0.5)
    writer.disconnect()


def tally(server: OwnServer, folder: Path, data_dir: Path) -> Tally:
    """Compare."""
    acknowledged: set[UUID] = set()
    for path in folder.glob("*.ledger"):
        data = path.read_bytes()
        acknowledged |= {UUID(bytes=data[at : at + 16]) for at in range(0, len(data) - 15, 16)}
    answered = set()
    for path in folder.glob("[ab].answered"):
        answered |= set(path.read_text("utf-8").splitlines())
    with database.connect(server.url) as conn:
        stored = {row[0] for row in conn.execute("SELECT id FROM trace")}
        row = conn.execute(
            """
            SELECT (SELECT count(*) - count(DISTINCT question) FROM trace),
                   (SELECT count(*) - count(DISTINCT args->>'trace_id') FROM procrastinate_jobs),
                   (SELECT count(*) FROM trace t
                    WHERE (SELECT count(*) FROM trace_chunk c JOIN chunk_text USING (sha256)
                           WHERE c.trace_id = t.id) <> %s),
                   (SELECT count(*) FROM trace t LEFT JOIN procrastinate_jobs j
                    ON j.queueing_lock = 'attribute-' || t.id WHERE j.id IS NULL)
            """,
            (CHUNKS,),
        ).fetchone()
    assert row is not None
    return Tally(
        acknowledged=len(acknowledged),
        lost=len(acknowledged - stored),
        doubled=row[0] + row[1],
        partial=row[2] + row[3],
        answered=len(answered),
        stored=len(stored),
        pending=inspect_spool(data_dir / "spool").waiting,
    )


Samples = NDArray[np.float64]  # [answer, (monotonic start, seconds, seconds inside our callbacks)]


def read_samples(folder: Path, names: list[str]) -> Samples:
    """All answers of these hosts; a kill may have torn the last."""
    parts = []
    for name in names:
        raw = (folder / f"{name}.samples").read_bytes()
        parts.append(np.frombuffer(raw[: len(raw) // 24 * 24], dtype=np.float64).reshape(-1, 3))
    return np.concatenate(parts)


def in_windows(samples: Samples, windows: list[Window]) -> NDArray[np.bool_]:
    """Which answers were begun in one of the windows."""
    chosen = np.zeros(len(samples), dtype=bool)
    for window in windows:
        chosen |= (samples[:, 0] >= window.start) & (samples[:, 0] < window.end)
    return chosen


def percentiles(seconds: NDArray[np.float64]) -> tuple[float, float]:
    """Median and 99th, milliseconds."""
    if not len(seconds):
        return float("nan"), float("nan")
    middle, high = np.percentile(seconds, (50, 99))
    return float(middle) * 1e3, float(high) * 1e3


def latency_rows(soak: Soak) -> tuple[list[dict[str, Any]], dict[str, float], dict[str, float]]:
    """A row a kind of window, and by the same names the p99 that capture adds in each, and the p99 of the
    time inside its callbacks."""
    captured, control = read_samples(soak.folder, ["a", "b"]), read_samples(soak.folder, ["control"])
    starting = [
        Window("starting", start, start + STARTING_SECONDS)
        for host in soak.hosts
        for start in host.starts
        if not host.is_control
    ]
    is_starting = in_windows(captured, starting), in_windows(control, starting)
    rows = []
    added: dict[str, float] = {}
    inside: dict[str, float] = {}
    kinds = dict.fromkeys(window.name for window in soak.windows)
    for kind in [*kinds, "host starting", "all outages"]:
        if kind == "host starting":
            chosen = is_starting
        else:
            windows = [w for w in soak.windows if w.name == kind or (kind not in kinds and w.name in OUTAGES)]
            chosen = (
                in_windows(captured, windows) & ~is_starting[0],
                in_windows(control, windows) & ~is_starting[1],
            )
        ours, theirs = percentiles(captured[chosen[0], 1]), percentiles(control[chosen[1], 1])
        added[kind] = ours[1] - theirs[1]
        own = percentiles(captured[chosen[0], 2])
        inside[kind] = own[1]
        rows.append(
            {
                "while": kind,
                "windows": sum(w.name == kind for w in soak.windows) or "",
                "answers": int(chosen[0].sum()),
                "p50 ms": round(ours[0], 2),
                "p99 ms": round(ours[1], 2),
                "control p50": round(theirs[0], 2),
                "control p99": round(theirs[1], 2),
                "p99 added ms": round(added[kind], 2),
                "in callbacks p50": round(own[0], 2),
                "in callbacks p99": round(own[1], 2),
            }
        )
    return rows, added, inside


def main() -> None:
    """Soak, tally, report."""
    minutes = float(sys.argv[sys.argv.index("--minutes") + 1]) if "--minutes" in sys.argv else 20.0
    plan, minutes = (QUICK, 0.0) if "--quick" in sys.argv else (Plan(), minutes)
    home = Path(tempfile.mkdtemp(prefix="ragblame-soak-"))
    data_dir, folder = home / "data", home / "hosts"
    data_dir.mkdir()
    folder.mkdir()
    try:
        with (
            own_server({"max_wal_size": "2GB"}) as server,
            spool_disk(data_dir, plan.spool_bytes) as (disk, cap),
        ):
            soak = Soak(plan, server, folder, data_dir, cap)
            began = time.monotonic()
            try:
                for host in soak.hosts:
                    soak.start_host(host)
                soak.run(minutes)
                took = time.monotonic() - began
                said = soak.end()
            finally:
                for host in soak.hosts:
                    if host.process is not None:
                        host.process.kill()
                        host.process.wait()
            drain(server, data_dir)
            found = tally(server, folder, data_dir)
            rows, added, inside = latency_rows(soak)
            totals = inspect_spool(data_dir / "spool").counts
            noise = [line for host in soak.hosts for line in soak.log(host).splitlines()]
    finally:
        shutil.rmtree(home, ignore_errors=True)
    captured = [host for host in soak.hosts if not host.is_control]
    failures = sum(report["failures"] + report["complaints"] for report in said.values())
    failures += totals.get("capture_faults", 0)
    kills = sum(host.kills for host in captured)
    rate = found.answered / took
    dropped = {name: count for name, count in sorted(totals.items()) if name.startswith("dropped")}
    notes = (
        f"{took / 60:.1f} minutes; {found.answered} answers, {found.stored} traces stored, "
        f"{found.acknowledged} acknowledged; {totals.get('spooled', 0)} went by the spool ({disk})",
        f"{kills} hosts were killed -9; what they held in memory, and what found no room on the full spool, "
        f"was never acknowledged: {found.answered - found.stored} answers, by the counters "
        f"{dropped or 'none dropped'} (a killed host's last five seconds of counts die with it)",
        "peak memory of the captured hosts that lived to the end, MiB: "
        + ", ".join(str(said[host.name]["peak_mib"]) for host in captured),
        f"lines on the hosts' standard error: {len(noise)}",
    )
    bars = [
        bar("acknowledged traces lost", found.lost, "<=", 0),
        bar("traces doubled", found.doubled, "<=", 0),
        bar("traces stored in part", found.partial, "<=", 0),
        bar("traces left on the spool", found.pending, "<=", 0),
        bar("exceptions in a chain or callback", failures, "<=", 0),
        bar("p99 added during outages, ms", round(added["all outages"], 2), "<=", 2),
        bar("of it, beyond calm windows, ms", round(added["all outages"] - added["calm"], 2), "<=", 2),
        bar("p99 inside callbacks during outages, ms", round(inside["all outages"], 2), "<=", 2),
        bar("answers a second", round(rate, 1), ">=", 200),
        bar("minutes", round(took / 60, 2), ">=", 20),
    ]
    report("fault soak", rows, bars, seed=SEED, packages=PACKAGES, notes=notes)
    if os.environ.get("RAGBLAME_SOAK_LOG"):
        print("\n".join(noise), file=sys.stderr)


if __name__ == "__main__":
    main()
