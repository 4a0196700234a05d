"""What lies in a spool folder, told to the doctor, to metrics and to the health page; and its running totals.

The totals outlive every process: they are where a trace that was dropped last night still shows.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ragblame.plugin.counters import lost
from ragblame.plugin.spool_files import lock, prepare, read_records

COUNTERS: Final = "counters.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolSize:
    """What a spool folder holds by names and sizes alone, which costs nothing however much waits."""

    bytes: int  # of all files in the folder
    waiting_files: int
    refused_files: int  # one trace each
    damaged_files: int  # what could not be read of a file
    oldest_seconds: float | None  # age of the oldest waiting file


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What lies in a spool folder."""

    waiting: int  # traces to be replayed
    bytes: int  # of all files in the folder
    oldest_seconds: float | None  # age of the oldest waiting file
    refused: int  # traces PostgreSQL would not take, kept in *.refused
    damaged: int  # unreadable or torn parts of files, kept as *.damaged
    counts: Mapping[str, int] = field(default_factory=dict)  # of all processes so far: dropped, spooled, …

    @property
    def lost(self) -> int:
        """Traces that will never be stored."""
        return lost(self.counts)


def measure_spool(folder: Path) -> SpoolSize:
    """How much waits in a spool folder, without reading it. A missing folder is an empty spool."""
    total, files, ages = 0, {".spool": 0, ".refused": 0, ".damaged": 0}, []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            size = path.stat().st_size
        except OSError:
            continue
        total += size
        if path.suffix in files and size:
            files[path.suffix] += 1
            ages += _age(path)
    return SpoolSize(
        bytes=total,
        waiting_files=files[".spool"],
        refused_files=files[".refused"],
        damaged_files=files[".damaged"],
        oldest_seconds=max(ages, default=None),
    )


def inspect_spool(folder: Path) -> SpoolState:
    """What waits in a spool folder, record by record; reads only. A missing folder is an empty spool."""
    waiting = total = refused = damaged = 0
    ages: list[float] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            size = path.stat().st_size
            if path.suffix in (".spool", ".refused"):
                count = len(read_records(path.read_bytes())[0])
                waiting += count if path.suffix == ".spool" else 0
                refused += count if path.suffix == ".refused" else 0
                ages += _age(path) if count else []
            damaged += path.suffix == ".damaged"
        except OSError:
            continue
        total += size
    return SpoolState(
        waiting=waiting,
        bytes=total,
        oldest_seconds=max(ages, default=None),
        refused=refused,
        damaged=damaged,
        counts=read_totals(folder),
    )


def _age(path: Path) -> list[float]:
    """Seconds since a waiting file was begun, by its name; never negative, clocks are set back."""
    head = path.name.partition("-")[0]
    if path.suffix != ".spool" or not head.isdecimal():
        return []
    return [max(0.0, time.time() - int(head) / 1_000)]


def add_totals(folder: Path, counts: Mapping[str, int]) -> None:
    """Add to the folder's running totals, of all processes together. Raises ``OSError``."""
    if not any(counts.values()):
        return
    prepare(folder)
    handle = os.open(folder / ".counters.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        lock(handle, wait=True)
        totals = read_totals(folder)
        for name, count in counts.items():
            totals[name] = totals.get(name, 0) + count
        fresh = folder / f".{COUNTERS}.{os.getpid()}"
        fresh.touch(0o600)
        fresh.write_text(json.dumps(totals), "utf-8")
        fresh.replace(folder / COUNTERS)
    finally:
        os.close(handle)


def read_totals(folder: Path) -> dict[str, int]:
    """The running totals; empty where there are none or they cannot be read."""
    try:
        counts = json.loads((folder / COUNTERS).read_text("utf-8"))
        return {str(name): int(count) for name, count in counts.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
