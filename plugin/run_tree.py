"""The open runs of this process, one tree per root, shared by every handler instance.

Shared, because LangChain may deliver one event to two handlers (an attached and an explicit one): whichever
tells of a run or its end first is heard, the other changes nothing. A tree is sealed once; what comes later
is ignored.
"""

import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from ragblame.records import Chunk, Json, Message, Trace, TraceStatus
from ragblame.traces import new_trace_id

IDLE_SECONDS: Final = 3_600.0  # a tree without an event for so long will not end any more
MAX_RUNS: Final = 50_000  # run ids known at once, all open trees together
MAX_BYTES: Final = 64_000_000  # text held by open trees
_SWEEP_SECONDS: Final = 10.0
_TOMBSTONE_SECONDS: Final = 60.0  # how long a finished tree still swallows its late children
_MAX_TOMBSTONES: Final = 20_000


@dataclass(slots=True)
class ModelRun:
    """One call of a language model."""

    run_id: UUID
    prompt: tuple[Message, ...]
    model: str | None
    provider: str | None
    in_retriever: bool  # a rewriter or reranker inside a retriever, never the one that answers
    text: str | None = None  # None: it has not ended; partial when it failed
    is_tool_call: bool = False  # it asked for a tool, or answered through one
    is_ok: bool = False
    error: str | None = None


@dataclass(slots=True)
class RetrieverRun:
    """One call of a retriever; nested ones only feed the outer one's result."""

    run_id: UUID
    query: str
    name: str | None
    table: str | None
    is_nested: bool
    chunks: tuple[Chunk, ...] = ()


@dataclass(slots=True)
class RunTree:
    """Everything seen of one root run so far."""

    trace_id: UUID
    root_id: UUID
    owner: int  # identity of the handler that told of the root
    started_at: datetime
    started: float  # monotonic seconds
    is_partial: bool  # its parent was never seen
    is_streaming: bool = False
    app: str | None = None
    table: str | None = None
    explicit: bool = False  # somebody gave a handler to this very call
    sink: Callable[[Trace], object] | None = None  # takes the trace instead of the database
    questions: tuple[str, ...] = ()  # texts of the input, the likeliest first
    answer: str | None = None  # of the root's output
    status: TraceStatus = TraceStatus.OK
    error: str | None = None
    session_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Json] = field(default_factory=dict)
    models: dict[UUID, ModelRun] = field(default_factory=dict)
    retrievers: dict[UUID, RetrieverRun] = field(default_factory=dict)
    passed: dict[tuple[str | None, str], Chunk] = field(
        default_factory=dict
    )  # documents in inputs and outputs
    recorded: list[Chunk] = field(default_factory=list)  # given by record_retrieval
    parents: dict[UUID, UUID | None] = field(default_factory=dict)  # every run of the tree
    last_event: float = 0.0
    ended: float | None = None  # monotonic; the root's end, children may still be open
    is_sealed: bool = False
    bytes: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the root ended before a model did, as it does when a consumer leaves a stream."""
        return any(model.text is None for model in list(self.models.values()))

    @property
    def has_chunks(self) -> bool:
        """Whether any retrieved text was seen."""
        retrieved = any(run.chunks for run in list(self.retrievers.values()))
        return bool(retrieved or self.passed or self.recorded)

    @property
    def is_worth_keeping(self) -> bool:
        """Whether this can be a trace at all; ``assembly.assemble`` decides with everything known."""
        return self.explicit or (self.has_chunks and (bool(self.models) or self.status is not TraceStatus.OK))

    def is_in_retriever(self, run_id: UUID | None) -> bool:
        """Whether a run stands under a retriever run."""
        while run_id is not None:
            if run_id in self.retrievers:
                return True
            run_id = self.parents.get(run_id)
        return False

    def hold(self, *texts: str | None) -> int:
        """Account for held text; returns the bytes added."""
        added = 0
        for text in texts:
            added += sys.getsizeof(text)
        self.bytes += added
        return added


class OpenRuns:
    """Run id to tree, with a bound on age, count and bytes. Every method is safe in any thread.

    The lock is re-entrant on purpose: a garbage collection inside a locked section may close an abandoned
    stream, whose callbacks then arrive here on the same thread.
    """

    def __init__(
        self,
        *,
        max_runs: int = MAX_RUNS,
        max_bytes: int = MAX_BYTES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.lock = threading.RLock()
        self.evicted = 0  # trees given up unfinished
        self._trees: dict[UUID, RunTree] = {}  # by run id
        self._roots: dict[UUID, RunTree] = {}  # by trace id, in order of start
        self._tombstones: OrderedDict[UUID, float] = OrderedDict()
        self._bytes = 0
        self._max_runs, self._max_bytes, self._idle_seconds = max_runs, max_bytes, idle_seconds
        self._swept = time.monotonic()

    def __len__(self) -> int:
        return len(self._roots)

    def start(self, run_id: UUID, parent_id: UUID | None, owner: int) -> tuple[RunTree | None, bool]:
        """Enter a run; returns its tree and whether this is news.

        ``(None, False)``: a late child of a finished tree. ``(tree, False)``: another handler told of it.
        """
        with self.lock:
            now = time.monotonic()
            known = self._trees.get(run_id)
            if known is not None:
                is_root = run_id == known.root_id
                if known.ended is not None and not is_root:
                    return None, False
                # A root that starts again, after its end or by the same handler: a reused run id.
                if known.ended is None and not (is_root and known.owner == owner):
                    return known, False
            tree = self._trees.get(parent_id) if parent_id is not None else None
            if tree is None:
                if parent_id is not None and self._is_tombstone(parent_id, now):
                    return None, False
                tree = RunTree(
                    trace_id=new_trace_id(),
                    root_id=run_id,
                    owner=owner,
                    started_at=datetime.now(UTC),
                    started=now,
                    is_partial=parent_id is not None,
                )
                self._roots[tree.trace_id] = tree
            elif tree.ended is not None:
                return None, False
            tree.last_event = now
            tree.parents[run_id] = parent_id
            self._trees[run_id] = tree
            return tree, True

    def find(self, run_id: UUID) -> RunTree | None:
        """The tree of a run, when it still takes events."""
        tree = self._trees.get(run_id)
        if tree is None or tree.is_sealed:
            return None
        tree.last_event = time.monotonic()
        return tree

    def hold(self, tree: RunTree, *texts: str | None) -> None:
        """Account for text that an open tree now holds."""
        with self.lock:
            if not tree.is_sealed:
                self._bytes += tree.hold(*texts)

    def seal(self, tree: RunTree) -> bool:
        """Take a tree out for good; False when somebody did already."""
        with self.lock:
            if tree.is_sealed:
                return False
            tree.is_sealed = True
            now = time.monotonic()
            for run_id in tree.parents:
                if self._trees.get(run_id) is tree:
                    del self._trees[run_id]
                self._tombstones[run_id] = now
                self._tombstones.move_to_end(run_id)
            while len(self._tombstones) > _MAX_TOMBSTONES:
                self._tombstones.popitem(last=False)
            self._roots.pop(tree.trace_id, None)
            self._bytes -= tree.bytes
            if not self._roots:
                self._bytes = 0
            return True

    def overdue(self) -> Iterator[RunTree]:
        """Trees to give up: idle too long, or too many held. Cheap unless there is something to do."""
        now = time.monotonic()
        is_full = len(self._trees) > self._max_runs or self._bytes > self._max_bytes
        if not is_full and now - self._swept < min(_SWEEP_SECONDS, self._idle_seconds):
            return
        with self.lock:
            self._swept = now
            running = [tree for tree in self._roots.values() if tree.ended is None]
            idle = [tree for tree in running if now - tree.last_event > self._idle_seconds]
            if not idle and is_full:  # the least recently active tenth, so that the scan pays
                by_age = sorted(running, key=lambda tree: tree.last_event)
                idle = by_age[: max(1, len(by_age) // 10)]
            self.evicted += len(idle)
        yield from idle

    def after_fork(self) -> None:
        """Forget everything in a new process: the parent's runs do not end here."""
        self.lock = threading.RLock()
        self._trees, self._roots, self._tombstones = {}, {}, OrderedDict()
        self._bytes = 0

    def _is_tombstone(self, run_id: UUID, now: float) -> bool:
        at = self._tombstones.get(run_id)
        return at is not None and now - at < _TOMBSTONE_SECONDS


open_runs: Final = OpenRuns()  # of this process


def is_interrupt(error: BaseException) -> bool:
    """Whether a graph paused to ask a person; recognised by name, langgraph is never imported."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"GraphBubbleUp", "GraphInterrupt", "NodeInterrupt", "ParentCommand"})


def status_of(error: BaseException) -> TraceStatus:
    """How a run ended, from the exception that ended it."""
    if isinstance(error, GeneratorExit):
        return TraceStatus.ABANDONED
    if is_interrupt(error):
        return TraceStatus.INTERRUPTED
    names: Any = {kind.__name__ for kind in type(error).__mro__}
    if "CancelledError" in names or isinstance(error, KeyboardInterrupt):
        return TraceStatus.CANCELLED
    return TraceStatus.ERROR
