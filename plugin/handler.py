"""The LangChain callback: turns events into run trees, in microseconds, and never lets a fault of ours out.

It runs inline (no executor hop in async chains), touches no database, disk or model, and keeps what an event
carries at the moment it passes. A finished tree goes to the recorder; everything else happens over there.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from uuid import UUID

from langchain_core.callbacks.base import BaseCallbackHandler

from ragblame.plugin import payloads
from ragblame.plugin.counters import counters
from ragblame.plugin.pending import take_pending
from ragblame.plugin.recorder import recorder
from ragblame.plugin.run_tree import ModelRun, RetrieverRun, RunTree, open_runs, status_of
from ragblame.records import Message, Trace, TraceStatus
from ragblame.suppression import is_suppressed

_Method = TypeVar("_Method", bound=Callable[..., None])
_MAX_PASSED = 1_000  # documents kept of a tree that has no retriever event


def _safe(method: _Method) -> _Method:
    """No exception of ours reaches the host; while capture is suppressed, nothing is heard."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> None:
        if is_suppressed():
            return
        try:
            method(*args, **kwargs)
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
    """

    raise_error = False
    run_inline = True  # a hop to an executor costs more than this handler, and lets events overtake

    def __init__(
        self,
        app: str | None = None,
        *,
        source_table: str | None = None,
        sink: Callable[[Trace], object] | None = None,
    ) -> None:
        self.app = app
        self.source_table = source_table
        self.sink = sink
        self.explicit = True  # False only for the handler that attach() adds everywhere

    def __repr__(self) -> str:
        return f"BlameHandler(app={self.app!r}, source_table={self.source_table!r})"

    # Chains and configs get copied and pickled with their handlers; all state lives in the process. A sink is
    # the process's own and stays behind.
    def __copy__(self) -> "BlameHandler":
        return self

    def __deepcopy__(self, memo: Any) -> "BlameHandler":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (self.app, self.source_table, self.explicit)

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
    def on_chain_start(
        self,
        serialized: Any,
        inputs: Any,
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """A step begins; while streaming its input comes only at the end."""
        tree = self._start(run_id, kwargs)
        if tree is None:
            return
        is_streaming = "defers_inputs" in kwargs
        if run_id == tree.root_id:
            tree.is_streaming = is_streaming
            if not is_streaming:
                self._note_question(tree, inputs)
        if not is_streaming:
            self._note_documents(tree, inputs)

    @_safe
    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A step ended; the root's end finishes the trace."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        inputs = kwargs.get("inputs")
        if inputs is not None:
            self._note_documents(tree, inputs)
        self._note_documents(tree, outputs)
        if run_id == tree.root_id:
            if inputs is not None and not tree.questions:
                self._note_question(tree, inputs)
            tree.answer = payloads.answer_text(outputs)
            if outputs is None and tree.is_streaming:
                tree.answer = ""  # left before its second piece: LangChain forgets the last one it gave out
            open_runs.hold(tree, tree.answer)
            self._finish(tree)

    @_safe
    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A step failed, was cancelled or left; at the root that ends the trace."""
        tree = open_runs.find(run_id)
        if tree is None or run_id != tree.root_id or tree.ended is not None:
            return
        if kwargs.get("inputs") is not None and not tree.questions:
            self._note_question(tree, kwargs["inputs"])
        self._fail(tree, error)

    @_safe
    def on_tool_start(
        self,
        serialized: Any,
        input_str: str,
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """A tool begins; retrievers may run inside."""
        tree = self._start(run_id, kwargs)
        if tree is not None and run_id == tree.root_id:
            self._note_question(tree, input_str)

    @_safe
    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool ended; its artifact may be the documents it found."""
        tree = open_runs.find(run_id)
        if tree is None or tree.ended is not None:
            return
        self._note_documents(tree, output)
        self._note_documents(tree, getattr(output, "artifact", None))
        if run_id == tree.root_id:
            tree.answer = payloads.answer_text(output)
            self._finish(tree)

    @_safe
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A tool failed; only a root tool ends the trace by it."""
        tree = open_runs.find(run_id)
        if tree is not None and run_id == tree.root_id and tree.ended is None:
            self._fail(tree, error)

    # Retrievers ------------------------------------------------------------

    @_safe
    def on_retriever_start(
        self,
        serialized: Any,
        query: str,
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """A search begins; the query may be a rewritten question."""
        tree = self._start(run_id, kwargs, takes_pending=False)
        if tree is None:
            return
        table = (kwargs.get("metadata") or {}).get(payloads.TABLE_KEY)
        name = kwargs.get("name")
        tree.retrievers[run_id] = RetrieverRun(
            run_id=run_id,
            query=str.__str__(query) if isinstance(query, str) else "",
            name=name if isinstance(name, str) else None,
            table=table if isinstance(table, str) else tree.table,
            is_nested=tree.is_in_retriever(kwargs.get("parent_run_id")),
        )

    @_safe
    def on_retriever_end(self, documents: Sequence[Any], *, run_id: UUID, **kwargs: Any) -> None:
        """A search ended: its documents are copied now, because later steps may edit them."""
        tree = open_runs.find(run_id)
        run = tree.retrievers.get(run_id) if tree is not None else None
        if tree is None or run is None or run.chunks:
            return
        if not run.is_nested:
            run.chunks = payloads.read_chunks(documents, run_id, run.table)
            open_runs.hold(tree, *(chunk.text for chunk in run.chunks))
        if run_id == tree.root_id:
            self._finish(tree)

    @_safe
    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A search failed; only a root retriever ends the trace by it."""
        tree = open_runs.find(run_id)
        if tree is not None and run_id == tree.root_id and tree.ended is None:
            self._fail(tree, error)

    # Models ------------------------------------------------------------

    @_safe
    def on_chat_model_start(
        self,
        serialized: Any,
        messages: Sequence[Any],
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """The only place where the prompt that is really sent can be seen."""
        tree = self._start(run_id, kwargs)
        if tree is not None:
            prompt = payloads.read_messages(messages[0] if messages else ())
            self._start_model(tree, run_id, prompt, serialized, kwargs)

    @_safe
    def on_llm_start(
        self,
        serialized: Any,
        prompts: list[str],
        *,
        run_id: UUID,
        **kwargs: Any,
    ) -> None:
        """A completion model begins; its prompt is one text."""
        tree = self._start(run_id, kwargs)
        if tree is not None:
            prompt = tuple(Message(role="prompt", text=str.__str__(text)) for text in prompts[:1])
            self._start_model(tree, run_id, prompt, serialized, kwargs)

    @_safe
    def on_llm_end(self, response: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """A model answered; after an abandoned stream this comes later than the root's end."""
        tree = open_runs.find(run_id)
        run = tree.models.get(run_id) if tree is not None else None
        if tree is None or run is None or run.text is not None:
            return
        text, run.is_tool_call, answered_by = payloads.read_generation(response)
        run.model = answered_by or run.model
        run.is_ok = True
        run.text = text
        open_runs.hold(tree, text)
        if run_id == tree.root_id:
            tree.answer = text
            self._finish(tree)

    @_safe
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """A model failed or was left; what it said so far is kept."""
        tree = open_runs.find(run_id)
        run = tree.models.get(run_id) if tree is not None else None
        if tree is None or run is None or run.text is not None:
            return
        response = kwargs.get("response")
        if status_of(error) is TraceStatus.ERROR:
            run.error = payloads.error_text(error)
        run.text = payloads.read_generation(response)[0] if response is not None else ""
        open_runs.hold(tree, run.text)
        if run_id == tree.root_id:
            self._fail(tree, error)

    # Newer events that LangGraph sends to every handler: named, so that nothing logs an AttributeError.

    def on_interrupt(self, *args: Any, **kwargs: Any) -> None:
        """A graph paused; the root's end says so too."""

    def on_resume(self, *args: Any, **kwargs: Any) -> None:
        """A graph goes on, as a new root run of the same session."""

    def on_stream_event(self, *args: Any, **kwargs: Any) -> None:
        """Tokens are not needed: partial text comes with the error."""

    # What the events have in common ------------------------------------------------------------

    def _start(self, run_id: UUID, event: Mapping[str, Any], *, takes_pending: bool = True) -> RunTree | None:
        """Enter the run; returns its tree when this is the first handler to tell of it."""
        tree, is_news = open_runs.start(run_id, event.get("parent_run_id"), id(self))
        if tree is not None and self.explicit:
            tree.explicit = True
            self._configure(tree)
        if tree is None or not is_news:
            return None
        if run_id == tree.root_id:
            self._configure(tree)
            if takes_pending:
                tree.recorded.extend(take_pending())
            tree.tags = tuple(tag for tag in event.get("tags") or () if isinstance(tag, str))
            if event.get("metadata"):
                tree.session_id, tree.metadata = payloads.read_metadata(event["metadata"])
            for overdue in open_runs.overdue():
                overdue.status = TraceStatus.ABANDONED
                counters.add("evicted_runs")
                self._finish(overdue)
        return tree

    def _configure(self, tree: RunTree) -> None:
        tree.app = tree.app or self.app
        tree.table = tree.table or self.source_table
        tree.sink = tree.sink or self.sink

    def _start_model(
        self,
        tree: RunTree,
        run_id: UUID,
        prompt: tuple[Message, ...],
        serialized: Any,
        event: Mapping[str, Any],
    ) -> None:
        model, provider = payloads.read_model(
            serialized, event.get("metadata") or {}, event.get("invocation_params") or {}
        )
        tree.models[run_id] = ModelRun(
            run_id=run_id,
            prompt=prompt,
            model=model,
            provider=provider,
            in_retriever=tree.is_in_retriever(event.get("parent_run_id")),
        )
        open_runs.hold(tree, *(message.text for message in prompt))

    def _note_question(self, tree: RunTree, inputs: Any) -> None:
        tree.questions = payloads.question_texts(inputs)
        open_runs.hold(tree, *tree.questions)

    def _note_documents(self, tree: RunTree, value: Any) -> None:
        """Documents that pass between steps: all there is when a chain searches without a retriever."""
        if len(tree.passed) >= _MAX_PASSED or not isinstance(value, list | tuple | dict):
            return
        documents = payloads.documents_in(value)
        if not documents or any(run.chunks for run in list(tree.retrievers.values())):
            return
        for chunk in payloads.read_chunks(documents, None, tree.table):
            if tree.passed.setdefault((chunk.source_id, chunk.text), chunk) is chunk:
                open_runs.hold(tree, chunk.text)

    def _fail(self, tree: RunTree, error: BaseException) -> None:
        tree.status = status_of(error)
        if tree.status is not TraceStatus.ABANDONED:
            tree.error = payloads.error_text(error)
        self._finish(tree)

    def _finish(self, tree: RunTree) -> None:
        tree.ended = time.monotonic()
        if tree.is_worth_keeping:
            recorder().submit(tree)
        else:
            open_runs.seal(tree)


def _restore(app: str | None, source_table: str | None, explicit: bool) -> BlameHandler:
    handler = BlameHandler(app, source_table=source_table)
    handler.explicit = explicit
    return handler
