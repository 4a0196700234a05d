"""The hand-over from callbacks to storage: one queue and one background thread per process.

A callback only puts a finished run tree on a queue and goes on. The thread starts with the first tree,
assembles traces, writes them, and is waited for at exit with a deadline; what is unwritten then goes to the
spool.
"""

import atexit
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final
from uuid import UUID

from ragblame.plugin.breathing import breathe
from ragblame.plugin.counters import counters
from ragblame.plugin.forking import fork_guard
from ragblame.plugin.run_tree import RunTree, open_runs
from ragblame.plugin.waiting import FlushMark, Waiting
from ragblame.trace_records import Trace

if TYPE_CHECKING:
    from pathlib import Path

    from ragblame.plugin.assembly import Limits
    from ragblame.plugin.writer import Writer
    from ragblame.settings import Settings

GRACE_SECONDS: Final = 1.0  # a model that still ran at the root's end may report so long
FLUSH_SECONDS: Final = 5.0  # until the settings are read


class Recorder:
    """Takes finished run trees from any thread, without ever waiting, and sees them stored."""

    def __init__(
        self,
        load_settings: "Callable[[], Settings] | None" = None,
        on_safe: Callable[[Sequence[UUID]], object] | None = None,
    ) -> None:
        """``on_safe`` hears, in the recorder's thread, the ids of traces that can no longer be lost.

        That is: PostgreSQL has committed them, or the spool has synced them to disk.
        """
        self._load_settings = load_settings
        self._on_safe = on_safe
        self._reset()

    def _reset(self) -> None:
        self.waiting = Waiting()
        self._lock = threading.RLock()  # over the thread's start; re-entrant, see Waiting
        self._thread: threading.Thread | None = None
        self._writer: Writer | None = None
        self._taken: dict[int, RunTree | Trace] = {}  # in the thread's hands, not yet stored; by trace id
        self._lost = counters.lost()  # traces known to be lost at the last flush
        self.flush_seconds = FLUSH_SECONDS

    def submit(self, tree: RunTree) -> None:
        """Hand over a finished tree. When too much waits already, it is dropped and counted."""
        counters.add("finished")
        if not self.waiting.put(tree):
            open_runs.seal(tree)
            counters.add("dropped_queue_full")
            counters.warn("full", "more traces wait in memory than the limit allows; new ones are dropped")
            return
        self._ensure_thread()

    @property
    def spool_folder(self) -> "Path | None":
        """Where traces wait on disk; None before the first one was handed over."""
        return None if self._writer is None else self._writer.spool.folder

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over so far is dealt with, ``timeout`` seconds at most.

        Returns True when all of it is in PostgreSQL; False when some waits (in memory or on the spool) or was
        dropped. None stands for the setting ``flush_timeout``. It blocks: not for callbacks and event loops.
        """
        if self._thread is None and self.waiting.is_empty:
            return True
        mark = FlushMark()
        self.waiting.mark(mark)
        self._ensure_thread()
        return mark.done.wait(self.flush_seconds if timeout is None else timeout) and mark.is_stored

    def close(self, timeout: float | None = None) -> None:
        """Flush, end the thread, and put on the spool what could not be written in time."""
        if self._thread is None and self.waiting.is_empty:
            return
        mark = FlushMark(is_last=True)
        self.waiting.mark(mark)
        self._ensure_thread()
        if not mark.done.wait(self.flush_seconds if timeout is None else timeout):
            self._rescue()

    def after_fork(self) -> None:
        """In a new process: the parent keeps its queue, thread and connection."""
        if self._writer is not None:
            self._writer.spool.after_fork()
            _parents_writers.append(self._writer)  # closing its connection here would end the parent's
        self._reset()

    def _ensure_thread(self) -> None:
        thread = self._thread
        if thread is not None and thread.is_alive():
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            thread = threading.Thread(target=self._run, name="ragblame-recorder", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter is ending: close() spools what is queued
                counters.note_fault(error)
                return
            self._thread = thread
            _register_exit()

    def _run(self) -> None:
        """The thread: take, assemble, write; a fault costs the batch it is in, never the thread."""
        with fork_guard.imports:
            self._writer = writer = self._make_writer()
        marks: list[FlushMark] = []
        unsettled: list[RunTree] = []  # whose models have not ended yet
        while True:
            try:
                is_pausing = bool(unsettled or marks)
                for item in self.waiting.take(0.02 if is_pausing else writer.next_wakeup()):
                    if isinstance(item, FlushMark):
                        marks.append(item)
                    else:
                        self._taken[item.trace_id.int] = item
                        unsettled.append(item)
                ready = [tree for tree in unsettled if _is_settled(tree)]
                settled = {id(tree) for tree in ready}
                unsettled = [tree for tree in unsettled if id(tree) not in settled]
                if ready:
                    self._store(ready, writer)
                elif not is_pausing:
                    writer.rest()
                writer.replay()
                writer.save_counts(now=False)
                writer.report()
            except Exception as error:
                counters.note_fault(error)
            if marks and not unsettled:
                if self._finish(marks, writer):
                    return
                marks = []

    def _store(self, trees: list[RunTree], writer: "Writer") -> None:
        """Assemble and write; empties ``trees``, so that no tree is held beside its trace."""
        traces, done = [], [tree.trace_id.int for tree in trees]
        trees.reverse()
        while trees:
            breathe()
            tree = trees.pop()
            open_runs.seal(tree)
            trace = _assemble(tree, writer.limits)
            if trace is not None and tree.sink is not None:
                _give(tree.sink, trace)
            elif trace is not None:
                traces.append(trace)
                self._taken[tree.trace_id.int] = trace
        try:
            safe = writer.write(traces) if traces else ()
            if safe and self._on_safe is not None:
                self._on_safe([trace.id for trace in safe])
        finally:
            for trace_id in done:
                self._taken.pop(trace_id, None)

    def _finish(self, marks: list[FlushMark], writer: "Writer") -> bool:
        """Answer the flushes; whether the thread is to end."""
        try:
            self.waiting.calm_down()
            lost = counters.lost()
            is_stored = (writer.is_clean or writer.replay(everything=True)) and lost == self._lost
            self._lost = lost
            is_last = any(mark.is_last for mark in marks)
            writer.save_counts()
            writer.report(now=is_last)
            if is_last:
                writer.disconnect()
                writer.spool.close()
        except Exception as error:
            counters.note_fault(error)
            is_stored, is_last = False, any(mark.is_last for mark in marks)
        for mark in marks:
            mark.is_stored = is_stored
            mark.done.set()
        return is_last

    def _make_writer(self) -> "Writer":
        from ragblame.errors import SettingsError
        from ragblame.plugin.writer import Writer
        from ragblame.settings import load_settings

        try:
            settings = (self._load_settings or load_settings)()
        except SettingsError as error:
            counters.warn("settings", f"traces wait on the spool: {error}")
            return Writer(None, self._look_pressed)
        waiting = self.waiting
        waiting.max_traces, waiting.max_bytes = settings.queue_max_traces, settings.queue_max_bytes
        self.flush_seconds = settings.flush_timeout
        if settings.database_url is None:
            import_module("ragblame.postgres")  # now, under the guard against forks
        return Writer(settings, self._look_pressed)

    def _look_pressed(self) -> bool:
        return self.waiting.is_pressed

    def _rescue(self) -> None:
        """At exit, with the thread stuck: spool everything unwritten through a file of our own.

        The thread's spool may be locked by it; what it manages to write after all is the same trace id.
        """
        held: list[RunTree | Trace] = [*self._taken.values(), *self.waiting.drain()]
        if not held:
            return
        from ragblame.plugin.spool import Spool

        for item in held:
            if not isinstance(item, Trace):
                open_runs.seal(item)  # as in _store: what a model says from now on is too late
        writer = self._writer or self._make_writer()
        found = [
            item if isinstance(item, Trace) else _assemble(item, writer.limits)
            for item in held
            if isinstance(item, Trace) or item.sink is None
        ]
        traces = [trace for trace in found if trace is not None]
        spool = Spool(writer.spool.folder, writer.spool.max_bytes)
        kept = spool.append(traces)
        spool.add_counts({"spooled": len(kept), "dropped_spool_full": len(traces) - len(kept)})
        spool.close()
        if kept and self._on_safe is not None:
            self._on_safe([trace.id for trace in kept])


def recorder() -> Recorder:
    """The recorder of this process."""
    return _current


def install(replacement: Recorder) -> Recorder:
    """Put another recorder in place (own settings, tests); returns the one before, with what it holds."""
    global _current
    before, _current = _current, replacement
    return before


def flush(timeout: float | None = None) -> bool:
    """Wait until this process's captured traces are stored; see ``Recorder.flush``."""
    return _current.flush(timeout)


def _is_settled(tree: RunTree) -> bool:
    return not tree.is_waiting or time.monotonic() - (tree.ended or 0.0) >= GRACE_SECONDS


def _assemble(tree: RunTree, limits: "Limits") -> Trace | None:
    # Not above: with redaction's patterns it would take a third of the plugin's own import. The writer has
    # loaded it by now, under the guard against forks.
    from ragblame.plugin.assembly import assemble

    try:
        return assemble(tree, limits)
    except Exception as error:
        counters.add("dropped_fault")
        counters.note_fault(error)
        return None


def _give(sink: Callable[[Trace], object], trace: Trace) -> None:
    try:
        sink(trace)
    except Exception as error:
        counters.note_fault(error)


def _at_exit() -> None:
    try:
        _current.close()
    except Exception as error:
        counters.note_fault(error)


def _register_exit() -> None:
    """multiprocessing ends its children without atexit, but runs its own finalizers there."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _at_exit, exitpriority=100)


def _after_fork() -> None:
    counters.after_fork()
    open_runs.after_fork()
    _current.after_fork()


_current = Recorder()
_parents_writers: list[object] = []
atexit.register(_at_exit)
fork_guard.run_in_child(_after_fork)
