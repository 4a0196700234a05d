"""The open runs of this process, one tree per root, shared by every handler instance.

Shared, because LangChain may deliver one event to two handlers (an attached and an explicit one): whichever
tells of a run or its end first is heard, the other changes nothing. A tree is sealed once; what comes later
is ignored.
"""

import sys
import time
from collections.abc import Callable
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
_TOMBSTONE_SECONDS: Final = 60.0  # a finished tree swallows its late children at least so long
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

    There is no lock, on purpose: a garbage collection may close an abandoned stream in the middle of any of
    these methods, and closing it may wait for threads whose own callbacks arrive here. Events of one run come
    one after the other, different runs are different keys, and single dictionary operations are atomic.
    """

    def __init__(
        self,
        *,
        max_runs: int = MAX_RUNS,
        max_bytes: int = MAX_BYTES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.evicted = 0  # trees given up unfinished
        self._max_runs, self._max_bytes, self._idle_seconds = max_runs, max_bytes, idle_seconds
        self.after_fork()

    def after_fork(self) -> None:
        """Forget everything in a new process: the parent's runs do not end here."""
        self._trees: dict[int, RunTree] = {}  # by run id; an int's hash needs no Python code
        self._roots: dict[int, RunTree] = {}  # by trace id, in order of start
        self._tombs: tuple[set[int], set[int]] = (set(), set())  # ids of finished runs: recent and older
        self._bytes = 0  # about what the open trees hold; made exact by every sweep
        self._swept = self._buried = time.monotonic()

    def __len__(self) -> int:
        return len(self._roots)

    def start(self, run_id: UUID, parent_id: UUID | None, owner: int) -> tuple[RunTree | None, bool]:
        """Enter a run; returns its tree and whether this is news.

        ``(None, False)``: a late child of a finished tree. ``(tree, False)``: another handler told of it.
        """
        known = self._trees.get(run_id.int)
        if known is not None:
            is_root = run_id == known.root_id
            if known.ended is not None and not is_root:
                return None, False
            # A root that starts again, after its end or by the same handler: a reused run id.
            if known.ended is None and not (is_root and known.owner == owner):
                return known, False
        tree = self._trees.get(parent_id.int) if parent_id is not None else None
        if tree is None:
            if parent_id is not None and any(parent_id.int in tombs for tombs in self._tombs):
                return None, False
            tree = RunTree(
                trace_id=new_trace_id(),
                root_id=run_id,
                owner=owner,
                started_at=datetime.now(UTC),
                started=time.monotonic(),
                is_partial=parent_id is not None,
            )
            self._roots[tree.trace_id.int] = tree
        elif tree.ended is not None:
            return None, False
        tree.last_event = time.monotonic()
        tree.parents[run_id] = parent_id
        self._trees[run_id.int] = tree
        return tree, True

    def find(self, run_id: UUID) -> RunTree | None:
        """The tree of a run, when it still takes events."""
        tree = self._trees.get(run_id.int)
        if tree is None or tree.is_sealed:
            return None
        tree.last_event = time.monotonic()
        return tree

    def hold(self, tree: RunTree, *texts: str | None) -> None:
        """Account for text that an open tree now holds."""
        if not tree.is_sealed:
            self._bytes += tree.hold(*texts)

    def seal(self, tree: RunTree) -> bool:
        """Take a tree out for good; False when somebody did already."""
        if self._roots.pop(tree.trace_id.int, None) is None:
            return False
        tree.is_sealed = True
        self._bytes = self._bytes - tree.bytes if self._roots else 0
        now = time.monotonic()
        if now - self._buried > _TOMBSTONE_SECONDS or len(self._tombs[0]) > _MAX_TOMBSTONES:
            self._tombs, self._buried = (set(), self._tombs[0]), now
        recent = self._tombs[0]
        for run_id in list(tree.parents):
            if self._trees.get(run_id.int) is tree:
                self._trees.pop(run_id.int, None)
            recent.add(run_id.int)
        return True

    def overdue(self) -> list[RunTree]:
        """Trees to give up: idle too long, or too many held. Cheap unless there is something to do."""
        now = time.monotonic()
        is_full = len(self._trees) > self._max_runs or self._bytes > self._max_bytes
        if not is_full and now - self._swept < min(_SWEEP_SECONDS, self._idle_seconds):
            return []
        self._swept = now
        roots = list(self._roots.values())
        self._bytes = sum(tree.bytes for tree in roots)
        running = sorted((tree for tree in roots if tree.ended is None), key=lambda tree: tree.last_event)
        given_up = [tree for tree in running if now - tree.last_event > self._idle_seconds]
        if not given_up and (len(self._trees) > self._max_runs or self._bytes > self._max_bytes):
            given_up = running[: max(1, len(running) // 10)]  # a tenth at once, so that the scan pays
        self.evicted += len(given_up)
        return given_up


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
