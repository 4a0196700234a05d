"""What the handler does with an event, whichever kind it is: enter a run, note what it carries, end a tree.

The host's values are read through ``tried``: an object that fails when looked at costs what it would have
told, never the rest of the trace.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from ragblame.plugin import payloads
from ragblame.plugin.counters import counters
from ragblame.plugin.endings import status_of
from ragblame.plugin.host_context import enclosing_run, running_config
from ragblame.plugin.passages import documents_in, read_passages
from ragblame.plugin.pending import take_pending
from ragblame.plugin.recorder import recorder
from ragblame.plugin.run_tree import ModelRun, RunTree, Search, branch_of, open_runs
from ragblame.plugin.sampling import IGNORE_TAG, KEEP_TAG
from ragblame.trace_records import Json, Message, Trace, TraceStatus

_Result = TypeVar("_Result")
_LOOKS_EVERY: Final = 64  # runs of one tree between two looks for what is overdue
_HOLDERS: Final = (list, tuple, dict)  # what may hold documents; a union would be made anew at every event
_MAX_PASSED: Final = 1_000  # documents kept of a tree that has no retriever event
# What is taken for a value that cannot be read.
_NO_TEXTS: Final[tuple[str, ...]] = ()
_NO_TEXT: Final[str | None] = None
_NO_DOCUMENTS: Final[Sequence[Any]] = ()


class Options(Protocol):
    """What a handler was told, for the trees it hears of."""

    app: str | None
    source_table: str | None
    sink: Callable[[Trace], object] | None
    sample_rate: float | None
    explicit: bool


def start(
    handler: Options, run_id: UUID, source: object, event: Mapping[str, Any], *, takes_pending: bool = True
) -> RunTree | None:
    """Enter the run; returns its tree when this is the first handler to tell of it.

    ``source`` is what the run was called with.
    """
    parent_id = event.get("parent_run_id")
    if parent_id is not None:
        tree = open_runs.join(run_id.int, parent_id.int, handler)
        if tree is not None:
            _note_step(tree, run_id.int, event.get("tags"))
            return tree
    tree, is_news = open_runs.start(run_id, parent_id or enclosing_run(source), source)
    if tree is None:
        return None
    if tree.heard_by is not handler:
        _take_options(tree, handler)
    if not is_news:
        return None
    tags = event.get("tags")
    if run_id.int != tree.root:
        _note_step(tree, run_id.int, tags)
        return tree
    give_up_overdue(tree)
    tree.is_fallback = event.get("name") == "RunnableWithFallbacks"
    if takes_pending:
        tree.told.extend(take_pending())
    if tags:
        tree.tags = payloads.read_tags(tags)
        tree.is_muted = tree.is_muted or IGNORE_TAG in tree.tags
        tree.kept_for = f"tag {KEEP_TAG}" if KEEP_TAG in tree.tags else None
    if event.get("metadata"):
        unreadable: tuple[str | None, dict[str, Json]] = (None, {})
        tree.session_id, tree.metadata = tried(
            payloads.read_metadata, event["metadata"], otherwise=unreadable
        )
    return tree


def _note_step(tree: RunTree, run: int, tags: Any) -> None:
    if tags and (branch := branch_of(tags)) is not None:
        tree.branches[run] = branch
    if tree.session_id is None and not tree.is_session_sought:
        tree.is_session_sought = True
        tree.session_id = tried(payloads.session_in, running_config().get("configurable"), otherwise=_NO_TEXT)
    if not len(tree.parents) % _LOOKS_EVERY:
        give_up_overdue(tree)


def give_up_overdue(tree: RunTree) -> None:
    """End what will not end by itself, or holds too much: ``tree`` is the one that just grew."""
    for given_up in open_runs.overdue(tree):
        finish(given_up)


def _take_options(tree: RunTree, handler: Options) -> None:
    tree.heard_by = handler
    if handler.explicit:
        tree.explicit = True
    tree.app = tree.app or handler.app
    tree.table = tree.table or handler.source_table
    tree.sink = tree.sink or handler.sink
    if tree.sample_rate is None:
        tree.sample_rate = handler.sample_rate


def start_model(
    tree: RunTree,
    run_id: UUID,
    prompt: tuple[Message, ...],
    messages: int,
    ignored: int,
    serialized: Any,
    event: Mapping[str, Any],
) -> None:
    """A model begins with this prompt: of so many messages in truth, and so many more prompts beside it."""
    model, provider = payloads.read_model(
        serialized, event.get("metadata") or {}, event.get("invocation_params") or {}
    )
    tree.models[run_id.int] = ModelRun(
        prompt=prompt,
        model=model,
        provider=provider,
        in_retriever=tree.is_in_retriever(tree.parents[run_id.int]),
        messages=messages,
        ignored=ignored,
    )
    open_runs.hold(tree, *(message.text for message in prompt))
    give_up_overdue(tree)


def note_question(tree: RunTree, inputs: Any) -> None:
    """Texts of an input that may be the question."""
    tree.questions = tried(payloads.question_texts, inputs, otherwise=_NO_TEXTS)
    open_runs.hold(tree, *tree.questions)


def note_answer(tree: RunTree, outputs: Any) -> None:
    """What the root's output says to the user."""
    tree.answer = tried(payloads.answer_text, outputs, otherwise=_NO_TEXT)
    open_runs.hold(tree, tree.answer)


def note_documents(tree: RunTree, value: Any) -> None:
    """Documents that pass between steps: all there is when a chain searches without a retriever."""
    if tree.has_retrieved or not isinstance(value, _HOLDERS) or len(tree.passed) >= _MAX_PASSED:
        return
    documents = tried(documents_in, value, otherwise=_NO_DOCUMENTS)
    if not documents:
        return
    times: Counter[tuple[str | None, str]] = Counter()  # two equal documents of one list are two
    for passage in read_passages(documents)[0]:
        key = (passage.identity, passage.text)
        times[key] += 1
        if tree.passed.setdefault((*key, times[key]), passage) is passage:
            open_runs.hold(tree, passage.text)


def note_found(tree: RunTree, search: Search, documents: Sequence[Any]) -> None:
    """A search's result, as it is now."""
    search.passages, search.found = read_passages(documents)
    if search.passages:
        tree.has_retrieved = True
        open_runs.hold(tree, *(passage.text for passage in search.passages))


def note_tool_search(tree: RunTree, run_id: UUID, output: Any, name: object) -> None:
    """Documents in a tool's output or artifact are a search of its own, unless a retriever ran inside."""
    documents = tried(_documents_of_tool, output, otherwise=_NO_DOCUMENTS)
    if not documents or run_id.int in tree.searches or tree.has_search_under(run_id.int):
        return
    search = Search(
        run_id=run_id,
        query=None,
        name=name if isinstance(name, str) else None,
        table=tree.table,
        is_nested=tree.is_in_retriever(tree.parents.get(run_id.int)),
    )
    note_found(tree, search, documents)
    tree.searches[run_id.int] = search


def _documents_of_tool(output: Any) -> Sequence[Any]:
    return documents_in(getattr(output, "artifact", None)) or documents_in(output)


def fail(tree: RunTree, error: BaseException) -> None:
    """The root ended by an exception."""
    tree.status = status_of(error)
    if tree.status is not TraceStatus.ABANDONED:
        tree.error = payloads.error_text(error)
    finish(tree)


def finish(tree: RunTree) -> None:
    """The root ended, or the tree is given up: hand it over."""
    open_runs.end(tree)
    if tree.is_worth_keeping:
        recorder().submit(tree)
    else:
        open_runs.seal(tree)


def tried(read: Callable[[Any], _Result], value: Any, *, otherwise: _Result) -> _Result:
    """What ``read`` makes of the host's value; ``otherwise``, and a count, when that fails."""
    try:
        return read(value)
    except Exception as error:
        counters.note_fault(error)
        return otherwise
