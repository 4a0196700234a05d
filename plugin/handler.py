"""The LangChain callback: turns events into run trees, in microseconds, and never lets a fault of ours out.

It runs inline (no executor hop in async chains), touches no database, disk or model, and keeps what an event
carries at the moment it passes. A finished tree goes to the recorder; everything else happens over there.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks.base import BaseCallbackHandler

from ragblame.plugin import listening, payloads
from ragblame.plugin.counters import counters
from ragblame.plugin.endings import is_pause, status_of
from ragblame.plugin.passages import TABLE_KEY
from ragblame.plugin.retrieval import read_retrieval
from ragblame.plugin.run_tree import Search, open_runs
from ragblame.plugin.sampling import IGNORE_TAG, require_rate
from ragblame.suppression import is_suppressed
from ragblame.trace_records import Json, Message, Trace, TraceStatus

# What is taken for a search that cannot be read.
_NOT_TOLD: dict[str, Json] | None = None
_Method = TypeVar("_Method", bound=Callable[..., None])


def _safe(method: _Method) -> _Method:
    """No exception of ours reaches the host; while capture is suppressed, nothing is heard."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> None:
        if is_suppressed():
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:
            counters.note_fault(error)

    return cast(_Method, call)


class BlameHandler(BaseCallbackHandler):
    """Records each answered question of a LangChain chain: question, chunks, prompt, answer.

    Give it to a call (``config={"callbacks": [BlameHandler(app="support")]}``), to a chain (``with_config``),
    or use ``ragblame.attach()`` once per process. One instance may serve any number of threads and tasks; an
    event that reaches several instances is recorded once.

    Args:
        app: Name of the chain in the triage page; None: the setting ``app``.
        source_table: Table the retrieved rows live in, e.g. ``"public.runbooks"``, for retrievers that do not
            say it themselves by a ``source_table`` in a document's or the retriever's own metadata.
        sink: Takes each trace instead of the database, in the recorder's thread; for tests and own storage.
        sample_rate: Share of the answers to record, 0 to 1; None: the setting ``capture_sample_rate``. What
            failed or was left, and what ``ragblame.keep()`` asks for, is recorded at any rate.

    Raises ``InputError`` when ``sample_rate`` lies outside 0 to 1.
    """

    raise_error = False
    run_inline = True  # a hop to an executor costs more than this handler, and lets events overtake

    def __init__(
        self,
        app: str | None = None,
        *,
        source_table: str | None = None,
        sink: Callable[[Trace], object] | None = None,
        sample_rate: float | None = None,
    ) -> None:
        if sample_rate is not None:
            require_rate(sample_rate)
        self.app = app
        self.source_table = source_table
        self.sink = sink
        self.sample_rate = sample_rate
        self.explicit = True  # False only for the handler that attach() adds everywhere

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Where LangGraph is at work, also one of its own handlers: it tells of some pauses to no other."""
        return super().__new__(cast(type[Self], _hearing_graphs(cls)))

    def __repr__(self) -> str:
        return f"BlameHandler(app={self.app!r}, source_table={self.source_table!r})"

    # Chains and configs get copied and pickled with their handlers; all state lives in the process. A sink is
    # the process's own and stays behind.
    def __copy__(self) -> "BlameHandler":
        return self

    def __deepcopy__(self, memo: Any) -> "BlameHandler":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.app, self.source_table, self.explicit, self.sample_rate)

    @property
    def ignore_retry(self) -> bool:
        """Retries show as further runs anyway."""
        return True

    @property
    def ignore_custom_event(self) -> bool:
        """The host's own events are none of ours."""
        return True

    # Chains and tools ------------------------------------------------------------

    @_safe
    def on_chain_start(self, serialized: Any, inputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A step begins; while streaming its input comes only at the end."""
        tree = listening.start(self, run_id, inputs, kwargs)
        if tree is None:
            return
        is_streaming = "defers_inputs" in kwargs
        if run_id.int == tree.root:
            tree.is_streaming = is_streaming
            if not is_streaming:
                tree.is_resumed = payloads.is_resumption(inputs)
                listening.note_question(tree, inputs)
        elif tree.is_resumed and not tree.questions and isinstance(inputs, dict):
            listening.note_question(tree, inputs)  # the graph's state still holds it
        if not (is_streaming or tree.has_retrieved):
            listening.note_documents(tree, inputs)

    @_safe
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A step ended; the root's end finishes the trace."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        inputs = kwargs.get("inputs")
        if not tree.has_retrieved:
            listening.note_documents(tree, inputs)
            listening.note_documents(tree, outputs)
        if run_id.int != tree.root:
            return
        if inputs is not None and not tree.questions:
            listening.note_question(tree, inputs)
        if tree.is_paused or payloads.says_paused(outputs):
            tree.status = TraceStatus.INTERRUPTED
        listening.note_answer(tree, outputs)
        if outputs is None and tree.is_streaming:
            tree.answer = ""  # left before its second piece: LangChain forgets the last one it gave out
        listening.finish(tree)

    @_safe
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A step failed, was cancelled or left; at the root that ends the trace."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        if run_id.int != tree.root:
            # A graph's root ends well when a step of its own pauses; a pause further down may be caught.
            if status_of(error) is TraceStatus.ERROR:
                tree.failed.add(run_id.int)
            elif is_pause(error) and tree.parents.get(run_id.int) == tree.root:
                tree.is_paused = True
            return
        if kwargs.get("inputs") is not None and not tree.questions:
            listening.note_question(tree, kwargs["inputs"])
        listening.fail(tree, error)

    @_safe
    def on_tool_start(self, serialized: Any, input_str: str, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool begins; retrievers may run inside."""
        tree = listening.start(self, run_id, input_str, kwargs)
        if tree is not None and run_id.int == tree.root:
            listening.note_question(tree, input_str)

    @_safe
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended; its artifact may be the documents it found."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        listening.note_tool_search(tree, run_id, output, kwargs.get("name"))
        if run_id.int == tree.root:
            listening.note_answer(tree, output)
            listening.finish(tree)

    @_safe
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool failed; only a root tool ends the trace by it."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        if run_id.int == tree.root:
            listening.fail(tree, error)
        elif status_of(error) is TraceStatus.ERROR:
            tree.failed.add(run_id.int)

    # Retrievers ------------------------------------------------------------

    @_safe
    def on_retriever_start(self, serialized: Any, query: str, *, run_id: UUID, **kwargs: Any) -> None:
        """A search begins; the query may be a rewritten question."""
        tree = listening.start(self, run_id, query, kwargs, takes_pending=False)
        if tree is None or IGNORE_TAG in (kwargs.get("tags") or ()):
            return
        metadata = kwargs.get("metadata") or {}
        table = metadata.get(TABLE_KEY)
        name = kwargs.get("name")
        tree.searches[run_id.int] = Search(
            run_id=run_id,
            query=str.__str__(query) if isinstance(query, str) else "",
            name=name if isinstance(name, str) else None,
            table=table if isinstance(table, str) else tree.table,
            retrieval=listening.tried(
                lambda said: read_retrieval(said, serialized), metadata, otherwise=_NOT_TOLD
            ),
            is_nested=tree.is_in_retriever(tree.parents[run_id.int]),
        )

    @_safe
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """A search ended: its documents are copied now, because later steps may edit them."""
        tree = open_runs.find(run_id)
        if tree is None:
            return
        search = tree.searches.get(run_id.int)
        if search is not None and not (search.is_nested or search.passages):
            listening.note_found(tree, search, documents)
        if run_id.int == tree.root and tree.ended is None:
            listening.finish(tree)

    @_safe
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A search failed; only a root retriever ends the trace by it."""
        tree = open_runs.find(run_id)
        if tree is not None and run_id.int == tree.root and tree.ended is None:
            listening.fail(tree, error)

    # Models ------------------------------------------------------------

    @_safe
    def on_chat_model_start(
        self, serialized: Any, messages: Sequence[Any], *, run_id: UUID, **kwargs: Any
    ) -> None:
        """The only place where the prompt that is really sent can be seen."""
        tree = listening.start(self, run_id, messages, kwargs)
        if tree is not None and IGNORE_TAG not in (kwargs.get("tags") or ()):
            first = messages[0] if messages else ()
            nothing: tuple[Message, ...] = ()
            prompt = listening.tried(payloads.read_messages, first, otherwise=nothing)
            listening.start_model(tree, run_id, prompt, len(first), len(messages) - 1, serialized, kwargs)

    @_safe
    def on_llm_start(self, serialized: Any, prompts: list[str], *, run_id: UUID, **kwargs: Any) -> None:
        """A completion model begins; its prompt is one text."""
        tree = listening.start(self, run_id, prompts, kwargs)
        if tree is not None and IGNORE_TAG not in (kwargs.get("tags") or ()):
            prompt = tuple(Message(role="prompt", text=str.__str__(text)) for text in prompts[:1])
            listening.start_model(tree, run_id, prompt, len(prompt), len(prompts) - 1, serialized, kwargs)

    @_safe
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered; after an abandoned stream this comes later than the root's end."""
        tree = open_runs.find(run_id)
        if tree is None:
            return
        run = tree.models.get(run_id.int)
        if run is not None and run.text is None:
            said = listening.tried(payloads.read_generation, response, otherwise=payloads.Generation(""))
            run.model = said.model or run.model
            run.is_tool_call, run.is_ok = said.is_tool_call, True
            run.ignored = max(run.ignored, said.ignored)
            run.text = said.text
            open_runs.hold(tree, said.text)
        if run_id.int == tree.root and tree.ended is None:
            tree.answer = run.text if run is not None else None
            listening.finish(tree)

    @_safe
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model failed or was left; what it said so far is kept."""
        tree = open_runs.find(run_id)
        if tree is None:
            return
        run = tree.models.get(run_id.int)
        if run is not None and run.text is None:
            if status_of(error) is TraceStatus.ERROR:
                run.error = payloads.error_text(error)
            partial, nothing = kwargs.get("response"), payloads.Generation("")
            said = (
                listening.tried(payloads.read_generation, partial, otherwise=nothing)
                if partial is not None
                else nothing
            )
            run.text = said.text
            open_runs.hold(tree, run.text)
        if run_id.int == tree.root and tree.ended is None:
            listening.fail(tree, error)

    # Newer events that LangGraph sends to every handler: named, so that nothing logs an AttributeError.

    @_safe
    def on_interrupt(self, event: Any, **kwargs: Any) -> None:
        """A graph paused; at ``interrupt_before`` and ``interrupt_after`` no step says so."""
        run_id = getattr(event, "run_id", None)
        if not isinstance(run_id, UUID):
            return
        tree = open_runs.find(run_id)
        if tree is not None and tree.ended is None and run_id.int == tree.root:
            tree.is_paused = True

    def on_resume(self, *args: Any, **kwargs: Any) -> None:
        """A graph goes on, as a new root run of the same session."""

    def on_stream_event(self, *args: Any, **kwargs: Any) -> None:
        """Tokens are not needed: partial text comes with the error."""


def _hearing_graphs(cls: type) -> type:
    """The class, joined with LangGraph's own base of handlers where the host has loaded it."""
    module = sys.modules.get("langgraph.callbacks")
    base = getattr(module, "GraphCallbackHandler", None)
    if not isinstance(base, type) or issubclass(cls, base):
        return cls
    found = _graph_classes.get(cls)
    if found is None:
        names = {"__doc__": cls.__doc__, "__module__": cls.__module__, "__qualname__": cls.__qualname__}
        found = _graph_classes[cls] = type(cls.__name__, (cls, base), names)
    return found


_graph_classes: dict[type, type] = {}


def _restore(
    app: str | None, source_table: str | None, explicit: bool, sample_rate: float | None = None
) -> BlameHandler:
    handler = BlameHandler(app, source_table=source_table, sample_rate=sample_rate)
    handler.explicit = explicit
    return handler
