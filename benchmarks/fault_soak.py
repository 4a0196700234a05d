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

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
from evidence import bar, report
from numpy.typing import NDArray
from own_server import OwnServer, own_server
from pydantic import SecretStr
from soak_stage import OUTAGES, QUICK, SEED, Plan, Soak, Window, spool_disk
from zipf_corpus import CHUNKS

from ragblame import database
from ragblame.plugin.spool_state import inspect_spool
from ragblame.plugin.writer import Writer
from ragblame.settings import Settings

STARTING_SECONDS: Final = 4.0  # a host that was just started loads its driver in the background
PACKAGES: Final = ("langchain-core", "psycopg")


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
