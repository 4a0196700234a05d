"""The open runs of this process, one tree per root, shared by every handler instance.

Shared, because LangChain may deliver one event to two handlers (an attached and an explicit one): whichever
tells of a run or its end first is heard, the other changes nothing. A tree is sealed once; what comes later
is ignored. Runs are known by the integer of their id: hashing a UUID runs Python code.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from ragblame.plugin.counters import counters
from ragblame.plugin.passages import Passage
from ragblame.trace_records import Json, Message, Trace, TraceStatus
from ragblame.traces import new_trace_id

IDLE_SECONDS: Final = 3_600.0  # a tree without an event for so long will not end any more
MAX_RUNS: Final = 50_000  # of all running trees together
MAX_BYTES: Final = 64_000_000  # text held by running trees
MAX_TREE_RUNS: Final = 20_000  # of one tree: a service's loop inside one root never ends
MAX_TREE_BYTES: Final = 32_000_000
_SWEEP_SECONDS: Final = 10.0
_TOMBSTONE_SECONDS: Final = 60.0  # a finished tree swallows its late children at least so long
_MAX_TOMBSTONES: Final = 20_000
_TOMB_BITS: Final = (1 << 60) - 1  # of an id: enough to tell a minute's runs apart, at two thirds of the size


@dataclass(slots=True)
class ModelRun:
    """One call of a language model."""

    prompt: tuple[Message, ...]
    model: str | None
    provider: str | None
    in_retriever: bool  # a rewriter or reranker inside a retriever, never the one that answers
    messages: int = 0  # of the prompt in truth; more than ``prompt`` when that was cut
    ignored: int = 0  # further prompts and generations of the same run: only the first is looked at
    text: str | None = None  # None: it has not ended; partial when it failed
    is_tool_call: bool = False  # it asked for a tool, or answered through one
    is_ok: bool = False
    error: str | None = None


@dataclass(slots=True)
class Search:
    """One search that found documents: a retriever's, a tool's, or one that the host told of."""

    run_id: UUID | None  # None: told by ``record_retrieval``
    query: str | None
    name: str | None
    table: str | None
    retrieval: dict[str, Json] | None = None  # k, filter, search type, as far as it tells
    is_nested: bool = False  # it only feeds the search around it
    passages: tuple[Passage, ...] = ()
    found: int = 0  # documents in truth; more than ``passages`` when only the first were read


@dataclass(slots=True)
class RunTree:
    """Everything seen of one root run so far."""

    trace_id: UUID  # version 7: it also holds when the tree began, by the one look at the wall clock
    root_id: UUID
    root: int  # the same as an integer
    source: int  # identity of what the root was called with: tells a second delivery from a second call
    started: float  # monotonic seconds
    last_event: float
    is_partial: bool  # its parent was never seen, or it was given up
    is_streaming: bool = False
    is_fallback: bool = False  # the root is a wrapper whose alternatives look like roots of their own
    is_resumed: bool = False  # the root was not given a question: it goes on where an earlier run paused
    is_paused: bool = False  # a step paused to ask a person
    is_muted: bool = False  # the host asked not to record it
    app: str | None = None
    table: str | None = None
    explicit: bool = False  # somebody gave a handler to this very call
    heard_by: object = None  # the handler whose options were taken over last
    sink: Callable[[Trace], object] | None = None  # takes the trace instead of the database
    sample_rate: float | None = None  # None: the setting decides
    kept_for: str | None = None  # why it is to be kept whatever sampling says
    questions: tuple[str, ...] = ()  # texts of the input, the likeliest first
    answer: str | None = None  # of the root's output
    status: TraceStatus = TraceStatus.OK
    error: str | None = None
    session_id: str | None = None
    is_session_sought: bool = False  # in the configuration that its steps run with
    tags: tuple[str, ...] = ()
    metadata: dict[str, Json] = field(default_factory=dict)
    models: dict[int, ModelRun] = field(default_factory=dict)
    searches: dict[int, Search] = field(default_factory=dict)  # by run
    told: list[Search] = field(default_factory=list)  # given by record_retrieval
    passed: dict[tuple[str | None, str, int], Passage] = field(default_factory=dict)  # between steps
    parents: dict[int, int | None] = field(default_factory=dict)  # every run of the tree
    branches: dict[int, str] = field(default_factory=dict)  # runs side by side: under which key
    failed: set[int] = field(
        default_factory=set
    )  # steps that raised; a retry or a fallback may have followed
    has_retrieved: bool = False  # a search found something: documents passed between steps are the same
    ended: float | None = None  # monotonic; the root's end, children may still be open
    is_sealed: bool = False
    bytes: int = 0

    @property
    def is_waiting(self) -> bool:
        """Whether the root ended before a model did, as it does when a consumer leaves a stream."""
        return any(model.text is None for model in list(self.models.values()))

    @property
    def is_worth_keeping(self) -> bool:
        """Whether this can be a trace at all; ``assembly.assemble`` decides with everything known."""
        if self.is_muted:
            return False
        has_chunks = self.has_retrieved or bool(self.passed or self.told)
        return self.explicit or (has_chunks and (bool(self.models) or self.status is not TraceStatus.OK))

    def is_in_retriever(self, run: int | None) -> bool:
        """Whether a run is or stands under a retriever run."""
        while run is not None:
            if run in self.searches:
                return True
            run = self.parents.get(run)
        return False

    def has_search_under(self, run: int) -> bool:
        """Whether a search ran inside this run."""
        for search in list(self.searches):
            parent = self.parents.get(search)
            while parent is not None:
                if parent == run:
                    return True
                parent = self.parents.get(parent)
        return False

    def hold(self, *texts: str | None) -> int:
        """Account for held text; returns the bytes added."""
        added = 0
        for text in texts:
            added += sys.getsizeof(text)
        self.bytes += added
        return added

    def forget_old_prompts(self) -> int:
        """Let go of the prompts of all but the latest model runs; returns the bytes freed.

        An agent's later prompts contain the earlier ones, and the answer is nearly always a late run's.
        """
        before = self.bytes
        for model in list(self.models.values())[:-2]:
            self.bytes -= sum(sys.getsizeof(message.text) for message in model.prompt)
            model.prompt = ()
        return before - self.bytes


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
        max_tree_runs: int = MAX_TREE_RUNS,
        max_tree_bytes: int = MAX_TREE_BYTES,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._max_runs, self._max_bytes, self._idle_seconds = max_runs, max_bytes, idle_seconds
        self._max_tree_runs, self._max_tree_bytes = max_tree_runs, max_tree_bytes
        self._sweep_seconds = min(_SWEEP_SECONDS, idle_seconds)
        self.after_fork()

    def after_fork(self) -> None:
        """Forget everything in a new process: the parent's runs do not end here."""
        self._trees: dict[int, RunTree] = {}  # by run
        self._roots: dict[int, RunTree] = {}  # by trace id, in order of start
        self._tombs: tuple[set[int], set[int]] = (set(), set())  # finished runs: recent and older
        self._runs = self._bytes = 0  # of running trees, about; made exact by every sweep
        self._swept = self._buried = time.monotonic()

    def __len__(self) -> int:
        return len(self._roots)

    def join(self, run: int, parent: int, handler: object) -> RunTree | None:
        """Enter a step of a tree that ``handler`` told of last; None: it is none, or ``start`` has to see.

        Nearly every event is of this kind.
        """
        tree = self._trees.get(parent)
        if tree is None or tree.ended is not None or tree.heard_by is not handler or run in self._trees:
            return None
        tree.last_event = time.monotonic()
        tree.parents[run] = parent
        self._trees[run] = tree
        self._runs += 1
        return tree

    def start(self, run_id: UUID, parent_id: UUID | None, source: object) -> tuple[RunTree | None, bool]:
        """Enter a run; returns its tree and whether this is news. ``source`` is what the run was called with.

        ``(None, False)``: a late child of a finished tree. ``(tree, False)``: another handler told of it.
        """
        run = run_id.int
        known = self._trees.get(run)
        is_collision = False
        if known is not None:
            is_other_call = run == known.root and id(source) != known.source
            if known.ended is None and not is_other_call:
                return known, False
            if run != known.root:
                return None, False
            if known.ended is None:
                # One id for two calls at once: nothing tells their events apart, a mixture would be a lie.
                is_collision = True
                counters.add("colliding_runs")
                self.seal(known)
        parent = parent_id.int if parent_id is not None else None
        tree = self._trees.get(parent) if parent is not None else None
        now = time.monotonic()
        if tree is None:
            if parent is not None and self._is_buried(parent):
                self._bury(now, run)  # its own children are late, too
                return None, False
            tree = RunTree(
                trace_id=new_trace_id(),
                root_id=run_id,
                root=run,
                source=id(source),
                started=now,
                last_event=now,
                is_partial=parent is not None,
                is_muted=is_collision,
            )
            self._roots[tree.trace_id.int] = tree
        elif tree.ended is not None:
            self._bury(now, run)
            return None, False
        else:
            tree.last_event = now
        tree.parents[run] = parent
        self._trees[run] = tree
        self._runs += 1
        return tree, True

    def find(self, run_id: UUID) -> RunTree | None:
        """The tree of a run, when it still takes events."""
        tree = self._trees.get(run_id.int)
        if tree is None or tree.is_sealed:
            return None
        tree.last_event = time.monotonic()
        return tree

    def hold(self, tree: RunTree, *texts: str | None) -> None:
        """Account for text that a tree now holds."""
        if not tree.is_sealed:
            added = tree.hold(*texts)
            if tree.ended is None:  # what has ended counts against the recorder's queue instead
                self._bytes += added

    def end(self, tree: RunTree) -> None:
        """The root ended: the tree takes no more runs, only the ends of those it has."""
        tree.ended = time.monotonic()
        self._runs -= len(tree.parents)
        self._bytes -= tree.bytes

    def seal(self, tree: RunTree) -> bool:
        """Take a tree out for good; False when somebody did already."""
        if self._roots.pop(tree.trace_id.int, None) is None:
            return False
        if tree.ended is None:
            self.end(tree)
        tree.is_sealed = True
        runs = list(tree.parents)
        self._bury(time.monotonic(), *runs)
        for run in runs:
            if self._trees.get(run) is tree:
                self._trees.pop(run, None)
        return True

    def overdue(self, tree: RunTree | None = None) -> list[RunTree]:
        """Trees to give up: idle too long, or too much held by all or by the ``tree`` that just grew.

        Cheap unless there is something to do.
        """
        now = time.monotonic() if tree is None else tree.last_event
        if tree is not None and self._is_overgrown(tree):
            self._bytes -= tree.forget_old_prompts()
            if self._is_overgrown(tree):
                return self._give_up([tree])
        is_full = self._runs > self._max_runs or self._bytes > self._max_bytes
        if not is_full and now - self._swept < self._sweep_seconds:
            return []
        self._swept = now
        running = [other for other in list(self._roots.values()) if other.ended is None]
        running.sort(key=lambda other: other.last_event)
        self._bytes = sum(other.bytes for other in running)
        self._runs = sum(len(other.parents) for other in running)
        idle = [other for other in running if now - other.last_event > self._idle_seconds]
        if not idle and (self._runs > self._max_runs or self._bytes > self._max_bytes):
            idle = running[: max(1, len(running) // 10)]  # a tenth at once, so that the scan pays
        return self._give_up(idle)

    def _is_overgrown(self, tree: RunTree) -> bool:
        return tree.bytes > self._max_tree_bytes or len(tree.parents) > self._max_tree_runs

    def _give_up(self, trees: list[RunTree]) -> list[RunTree]:
        for tree in trees:
            counters.add("evicted_runs")
            tree.status, tree.is_partial = TraceStatus.ABANDONED, True
        return trees

    def _bury(self, now: float, *runs: int) -> None:
        if now - self._buried > _TOMBSTONE_SECONDS or len(self._tombs[0]) > _MAX_TOMBSTONES:
            self._tombs, self._buried = (set(), self._tombs[0]), now
        recent = self._tombs[0]
        for run in runs:
            recent.add(run & _TOMB_BITS)

    def _is_buried(self, run: int) -> bool:
        tomb = run & _TOMB_BITS
        return tomb in self._tombs[0] or tomb in self._tombs[1]


open_runs: Final = OpenRuns()  # of this process


def branch_of(tags: Any) -> str | None:
    """Under which key of a RunnableParallel a run stands, as LangChain's own tag says."""
    for tag in tags:
        if isinstance(tag, str) and tag.startswith("map:key:"):
            return tag
    return None
