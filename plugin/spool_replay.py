"""One spool file on its way to PostgreSQL, a few traces at a time; it is deleted when all of them are there.

A few at a time, because a server that takes in a whole file at once keeps a processor from the host's answers
for as long. What was handed over of a file that could not be finished is handed over again: that changes
nothing, for a trace is stored once by its id.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ragblame.errors import RagblameError
from ragblame.plugin import spool_files
from ragblame.plugin.breathing import breathe
from ragblame.trace_records import Trace
from ragblame.traces import trace_from_json

BATCH: Final = 50  # traces handed over at once at most


class FileReplay:
    """A file that is ours while it is replayed. Use ``begin``, and ``end`` or ``give_back`` at the end."""

    def __init__(self, path: Path, handle: int) -> None:
        """``handle``: of the open and locked file."""
        self.path, self._handle = path, handle
        with os.fdopen(os.dup(handle), "rb") as file:
            self._bodies, self._unreadable = spool_files.read_records(file.read())
        self._next = 0  # of the bodies

    @classmethod
    def begin(cls, path: Path) -> "FileReplay | None":
        """None when the file is gone, unreadable or another living process's."""
        try:
            handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
        except OSError:
            return None
        try:
            if spool_files.lock(handle) and path.exists():
                return cls(path, handle)
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        return None

    @property
    def is_done(self) -> bool:
        """Whether every trace was handed over."""
        return self._next == len(self._bodies)

    def step(self, write: Callable[[Sequence[Trace]], None], most: int) -> int:
        """Hand over the next traces, so many at most; returns how many. None where ``write`` raises."""
        bodies = self._bodies[self._next : self._next + min(most, BATCH)]
        batch: list[Trace] = []
        unreadable = b""
        for body in bodies:
            breathe()
            try:
                batch.append(trace_from_json(json.loads(body)))
            except (ValueError, RagblameError):
                unreadable += spool_files.frame(body)
        if batch:
            write(batch)
        self._next += len(bodies)
        self._unreadable += unreadable
        return len(batch)

    def end(self) -> None:
        """Delete the file; what could not be read of it stays, for somebody to look at."""
        try:
            if self._unreadable:
                _set_apart(self.path, self._unreadable)
            else:
                self.path.unlink()
        finally:
            self.give_back()

    def give_back(self) -> None:
        """Let go of the file as it is; another process may replay it."""
        os.close(self._handle)


def _set_apart(path: Path, unreadable: bytes) -> None:
    """Leave only what could not be read; all of it where the disk is full."""
    aside = path.with_suffix(".damaged")
    try:
        aside.touch(0o600)
        aside.write_bytes(unreadable)
        path.unlink()
    except OSError:
        path.replace(aside)
