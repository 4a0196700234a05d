"""Traces on disk while PostgreSQL is away: written by one process, replayed by any later one, exactly once.

A spool file belongs to the process that holds its lock; the lock ends with the process, however that ends,
and then the file is anybody's to replay. A record is on disk (fsync) before its trace counts as safe. Exactly
once comes from the trace id: replaying a file twice changes nothing.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from ragblame.plugin import spool_files
from ragblame.plugin.breathing import breathe
from ragblame.plugin.spool_files import MAGIC
from ragblame.plugin.spool_replay import FileReplay
from ragblame.plugin.spool_state import add_totals, inspect_spool
from ragblame.trace_json import clean_to_json
from ragblame.trace_records import Trace
from ragblame.traces import clean_text

__all__ = ["Spool", "inspect_spool"]

ROTATE_BYTES: Final = 500_000  # a file is closed here: a replay deletes files as it goes
SUFFIX: Final = ".spool"  # of files that wait to be replayed
GLANCE_SECONDS: Final = 0.25  # between two looks at the folder and its files: there may be a thousand


class Spool:
    """The spool folder, as one process sees it. Safe in any thread; it touches the disk."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.lock = threading.RLock()
        self._file: int | None = None
        self._path: Path | None = None
        self._replay: FileReplay | None = None  # the file whose replay has begun
        self._size = 0  # of the open file, as far as it was synced
        self._looked = -GLANCE_SECONDS  # when the folder's size was looked at
        self._seen = 0  # bytes found there, and those written since
        self._listed = -GLANCE_SECONDS  # when it was looked whether anything waits
        self._has_files = False

    def append(self, traces: Sequence[Trace]) -> Sequence[Trace]:
        """Keep clean traces on disk; returns those that found room. Raises ``OSError`` where it cannot."""
        with self.lock:
            room = self.max_bytes - self._used()
            records, kept = [], []
            for trace in traces:
                breathe()
                record = spool_files.encode(clean_to_json(trace))
                if len(record) + len(MAGIC) > room:
                    break
                room -= len(record)
                records.append(record)
                kept.append(trace)
            if records:
                self._write(b"".join(records))
            return kept

    def refuse(self, trace: Trace, reason: str) -> None:
        """Keep a clean trace that PostgreSQL will never take, and why, out of the way of the others."""
        with self.lock:
            record = spool_files.encode({"refused": clean_text(reason), "trace": clean_to_json(trace)})
            if len(record) + len(MAGIC) <= self.max_bytes - self._used():
                self._write(record, suffix=".refused")

    def has_files(self, *, now: bool = True) -> bool:
        """Whether anything waits, in this process's file or another's.

        Without ``now``, another's file may be overlooked for a quarter of a second.
        """
        if not now and time.monotonic() - self._listed <= GLANCE_SECONDS:
            return self._has_files
        self._listed = time.monotonic()
        try:
            with os.scandir(self.folder) as entries:  # no list, no order: there may be a thousand
                self._has_files = any(entry.name.endswith(SUFFIX) for entry in entries)
        except OSError:
            self._has_files = False
        return self._has_files

    def replay(self, write: Callable[[Sequence[Trace]], None], most: int | None = None) -> tuple[int, bool]:
        """Hand waiting traces to ``write`` in order, so many at most, and delete the files that are through.

        Returns how many traces that were, and whether all files were gone through. Files of other living
        processes are left to them. An exception of ``write`` ends the replay; nothing is lost.
        """
        with self.lock:
            self._let_go()  # our own file is replayed like any other
            self._looked = self._listed = -GLANCE_SECONDS  # what is taken makes room
            count, ended = 0, set[Path]()
            while most is None or count < most:
                if self._replay is None and not self._begin_replay(ended):
                    return count, True
                assert self._replay is not None
                try:
                    count += self._replay.step(write, sys.maxsize if most is None else most - count)
                except BaseException:
                    self._stop_replay()
                    raise
                if self._replay.is_done:
                    done, self._replay = self._replay, None
                    done.end()
                    ended.add(done.path)
            return count, False

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to the folder's running totals, which outlive every process."""
        with self.lock:
            add_totals(self.folder, counts)

    def close(self) -> None:
        """Let go of the files that are written and replayed; another process may replay them from now on."""
        with self.lock:
            self._stop_replay()
            self._let_go()

    def after_fork(self) -> None:
        """In a new process: the file stays the parent's, whose lock the shared handle does not end."""
        self.lock = threading.RLock()
        self.close()

    def _let_go(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file = self._path = None
        self._size = 0

    def _begin_replay(self, ended: set[Path]) -> bool:
        """Take the first file that may be replayed and has not been; False when there is none."""
        for path in self._files():
            if path not in ended and (found := FileReplay.begin(path)) is not None:
                self._replay = found
                return True
        return False

    def _stop_replay(self) -> None:
        stopped, self._replay = self._replay, None
        if stopped is not None:
            stopped.give_back()

    def _files(self) -> Iterator[Path]:
        """Files that wait now, in order; each may be gone by the time it comes."""
        try:
            with os.scandir(self.folder) as entries:
                names = sorted(entry.name for entry in entries if entry.name.endswith(SUFFIX))
        except OSError:
            return
        for name in names:
            yield self.folder / name

    def _used(self) -> int:
        """Bytes in the folder: looked at four times a second at most, and what we wrote since added."""
        now = time.monotonic()
        if now - self._looked > GLANCE_SECONDS:
            try:
                with os.scandir(self.folder) as entries:
                    self._seen = sum(entry.stat().st_size for entry in entries if entry.is_file())
            except OSError:
                self._seen = 0
            self._looked = now
        return self._seen

    def _write(self, data: bytes, suffix: str = SUFFIX) -> None:
        if self._file is not None and (
            self._path is None or self._path.suffix != suffix or not self._is_ours()
        ):
            self._let_go()
        if self._file is None:
            self._open(suffix)
        assert self._file is not None
        start = self._size
        try:
            view = memoryview(data if start else MAGIC + data)
            size = start + len(view)
            while view:
                view = view[os.write(self._file, view) :]
            os.fsync(self._file)
            if not start:
                spool_files.sync_folder(self.folder)
        except OSError:
            os.ftruncate(self._file, start)  # a full disk must not leave half a record before the next one
            raise
        self._seen += size - start
        self._size = size
        self._has_files = self._has_files or suffix == SUFFIX
        if self._size >= ROTATE_BYTES or suffix != SUFFIX:
            self._let_go()

    def _is_ours(self) -> bool:
        """Whether the open file still stands in the folder: somebody may have cleared it away."""
        assert self._file is not None
        assert self._path is not None
        try:
            return os.path.samestat(os.fstat(self._file), self._path.lstat())
        except OSError:
            return False

    def _open(self, suffix: str) -> None:
        spool_files.prepare(self.folder)
        while True:
            name = spool_files.name_file(self.folder, time.time_ns() // 1_000_000, suffix)
            path = self.folder / name
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
            self._file, self._path, self._size = handle, path, 0
            # Between creation and lock another process may have found the empty file and removed it.
            if spool_files.lock(handle) and self._is_ours():
                return
            self._let_go()
