"""Traces on disk while PostgreSQL is away: written by one process, replayed by any later one, exactly once.

A spool file belongs to the process that holds its lock; the lock ends with the process, however that ends,
and then the file is anybody's to replay. Records carry their length and a checksum, so a torn tail costs only
itself. Exactly once comes from the trace id: replaying a file twice changes nothing.
"""

import json
import os
import stat
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ragblame.errors import RagblameError
from ragblame.records import Json, Trace
from ragblame.traces import clean_text, trace_from_json, trace_to_json

if sys.platform != "win32":
    import fcntl

MAGIC: Final = b"ragblame spool 1\n"
HEADER: Final = struct.Struct(">II")  # length and CRC-32 of the JSON that follows
ROTATE_BYTES: Final = 8_000_000  # a file is closed here, so that a replay deletes as it goes
BATCH: Final = 100  # traces handed over at once in a replay
COUNTERS: Final = "counters.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolState:
    """What lies in a spool folder, for the doctor."""

    waiting: int  # traces to be replayed
    bytes: int
    oldest_seconds: float | None  # age of the oldest waiting file
    refused: int  # traces PostgreSQL would not take, kept in *.refused
    damaged: int  # files with unreadable or torn records, kept as *.damaged
    counts: Mapping[str, int] = field(default_factory=dict)  # of all processes so far: dropped, spooled, …


class Spool:
    """The spool folder, as one process sees it. Safe in any thread; it touches the disk."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.lock = threading.RLock()
        self._file: int | None = None
        self._path: Path | None = None
        self._size = 0

    def append(self, traces: Sequence[Trace]) -> int:
        """Keep traces on disk; returns how many found room. Raises ``OSError`` for an unusable folder."""
        with self.lock:
            room = self.max_bytes - self._used()
            records = []
            for trace in traces:
                try:
                    record = _encode(trace_to_json(trace))
                except RagblameError:
                    continue  # it could not be stored later either
                if len(record) > room:
                    break
                room -= len(record)
                records.append(record)
            if records:
                self._write(b"".join(records))
            return len(records)

    def refuse(self, trace: Trace, reason: str) -> None:
        """Keep a trace that PostgreSQL will never take, out of the way of the others, with the reason."""
        with self.lock:
            try:
                value = trace_to_json(trace)
            except RagblameError:
                value = {"id": str(trace.id), "question": clean_text(trace.question)}
            record = _encode({"refused": clean_text(reason), "trace": value})
            if len(record) <= self.max_bytes - self._used():
                self._write(record, suffix=".refused")

    def has_files(self) -> bool:
        """Whether anything waits, in this process's file or another's."""
        return next(self._files(), None) is not None

    def replay(
        self, write: Callable[[Sequence[Trace]], None], max_files: int | None = None
    ) -> tuple[int, bool]:
        """Hand waiting traces to ``write`` in order and delete what was taken.

        Returns how many traces that were, and whether all files were gone through. Files of other living
        processes are left to them. An exception of ``write`` ends the replay; nothing is lost.
        """
        with self.lock:
            self.close()  # our own file is replayed like any other
            count = files = 0
            for path in list(self._files()):
                if max_files is not None and files >= max_files:
                    return count, False
                taken = _replay_file(path, write)
                if taken is not None:
                    count, files = count + taken, files + 1
            return count, True

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to the folder's running totals, which outlive every process."""
        if not any(counts.values()):
            return
        with self.lock:
            _prepare(self.folder)
            handle = os.open(self.folder / ".counters.lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _lock(handle, wait=True)
                totals = _read_counts(self.folder)
                for name, count in counts.items():
                    totals[name] = totals.get(name, 0) + count
                fresh = self.folder / f".{COUNTERS}.{os.getpid()}"
                fresh.touch(0o600)
                fresh.write_text(json.dumps(totals), "utf-8")
                fresh.replace(self.folder / COUNTERS)
            finally:
                os.close(handle)

    def close(self) -> None:
        """Let go of the file that is being written; another process may replay it from now on."""
        with self.lock:
            if self._file is not None:
                os.close(self._file)
            self._file = self._path = None

    def after_fork(self) -> None:
        """In a new process: the file stays the parent's, whose lock the shared handle does not end."""
        self.lock = threading.RLock()
        self.close()

    def _files(self) -> Iterator[Path]:
        try:
            yield from sorted(path for path in self.folder.iterdir() if path.suffix == ".spool")
        except OSError:
            return

    def _used(self) -> int:
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.folder) if entry.is_file())
        except OSError:
            return 0

    def _write(self, data: bytes, suffix: str = ".spool") -> None:
        if self._file is not None and (
            self._path is None or self._path.suffix != suffix or not self._is_ours()
        ):
            self.close()
        if self._file is None:
            self._open(suffix)
        assert self._file is not None
        start = self._size
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, start)  # a full disk must not leave half a record before the next one
            raise
        self._size = start + len(data)
        if self._size >= ROTATE_BYTES or suffix != ".spool":
            self.close()

    def _is_ours(self) -> bool:
        """Whether the open file still stands in the folder: somebody may have cleared it away."""
        assert self._file is not None
        assert self._path is not None
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except OSError:
            return False

    def _open(self, suffix: str) -> None:
        _prepare(self.folder)
        while True:
            name = f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}-{os.urandom(4).hex()}{suffix}"
            path = self.folder / name
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._file, self._path = handle, path
            # Between creation and lock another process may have found the empty file and removed it.
            if _lock(handle) and self._is_ours():
                os.write(handle, MAGIC)
                self._size = len(MAGIC)
                return
            self.close()


def inspect_spool(folder: Path) -> SpoolState:
    """What waits in a spool folder; reads only. A missing folder is an empty spool."""
    waiting = total = refused = damaged = 0
    oldest: float | None = None
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            size = path.stat().st_size
            if path.suffix in (".spool", ".refused"):
                count = len(_records(path.read_bytes())[0])
                waiting += count if path.suffix == ".spool" else 0
                refused += count if path.suffix == ".refused" else 0
                if path.suffix == ".spool" and count:
                    age = time.time() - int(path.name.split("-")[0]) / 1_000
                    oldest = max(age, oldest or 0.0)
            damaged += path.suffix == ".damaged"
        except (OSError, ValueError):
            continue
        total += size
    return SpoolState(
        waiting=waiting,
        bytes=total,
        oldest_seconds=oldest,
        refused=refused,
        damaged=damaged,
        counts=_read_counts(folder),
    )


def _encode(value: Mapping[str, Json]) -> bytes:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def _records(data: bytes) -> tuple[list[bytes], bool]:
    """The bodies of a file's readable records, in order, and whether that is all the file holds."""
    bodies: list[bytes] = []
    if not data.startswith(MAGIC):
        return bodies, not data
    offset, is_whole = len(MAGIC), True
    while offset < len(data):
        length, checksum = HEADER.unpack_from(data, offset) if offset + HEADER.size <= len(data) else (0, 1)
        offset += HEADER.size + length
        if offset > len(data):
            return bodies, False  # the tail that a crash tore off, or a damaged length
        body = data[offset - length : offset]
        if zlib.crc32(body) == checksum:
            bodies.append(body)
        else:
            is_whole = False
    return bodies, is_whole


def _replay_file(path: Path, write: Callable[[Sequence[Trace]], None]) -> int | None:
    """How many traces were taken from the file; None: it is gone, unreadable or another process's."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        if not _lock(handle) or not path.exists():
            return None
        with os.fdopen(os.dup(handle), "rb") as file:
            data = file.read()
        bodies, is_whole = _records(data)
        batch: list[Trace] = []
        count = 0
        for number, body in enumerate(bodies, 1):
            try:
                batch.append(trace_from_json(json.loads(body)))
            except (ValueError, RagblameError):
                is_whole = False
            if batch and (len(batch) >= BATCH or number == len(bodies)):
                write(batch)
                count += len(batch)
                batch = []
        if is_whole:
            path.unlink()
        else:
            path.rename(path.with_suffix(".damaged"))
        return count
    finally:
        os.close(handle)


def _lock(handle: int, *, wait: bool = False) -> bool:
    if sys.platform == "win32":
        return True  # no such locks there: a file may be replayed twice, which changes nothing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _prepare(folder: Path) -> None:
    """Make the folder private; refuse one that others can write, they could slip traces in."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "geteuid") and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    elif stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} can be written by others: make it yours with mode 0700")


def _read_counts(folder: Path) -> dict[str, int]:
    try:
        counts = json.loads((folder / COUNTERS).read_text("utf-8"))
        return {str(name): int(count) for name, count in counts.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
