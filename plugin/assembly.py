"""From a finished run tree to a Trace: here it is decided what is recorded and which field means what.

It runs in the writer's thread, so that comparing megabytes of text never costs the host chain anything.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from uuid import UUID

from ragblame.json_values import clean_identity
from ragblame.plugin.answer import choose_model_run
from ragblame.plugin.answer_map import map_answer
from ragblame.plugin.breathing import breathe
from ragblame.plugin.counters import counters
from ragblame.plugin.known_chunks import known_chunks
from ragblame.plugin.passages import Passage
from ragblame.plugin.redaction import Redactor
from ragblame.plugin.run_tree import ModelRun, RunTree, Search
from ragblame.plugin.sampling import reason_to_keep
from ragblame.plugin.search_order import ordered_searches
from ragblame.trace_json import MAX_TABLE_BYTES, clean_trace
from ragblame.trace_records import Chunk, Json, Message, Trace, TraceStatus

_MAX_NOTED: Final = 10  # model runs and searches that the notes list
_MAX_NOTE: Final = 500  # code points of a query or an error in the notes
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of one trace is kept, and what holds for a chain that says nothing itself."""

    max_field: int = 1_000_000  # code points of any one text
    max_chunks: int = 200
    max_trace: int = 8_000_000  # code points of all texts together
    app: str = "default"
    sample_rate: float = 1.0  # share of the answers recorded, 0 to 1
    redactor: Redactor = field(default_factory=Redactor)  # what is masked


class _Found(NamedTuple):
    """A passage with the search it came from."""

    passage: Passage
    rank: int  # within its search, from 1
    run_id: UUID | None
    table: str | None


def assemble(tree: RunTree, limits: Limits) -> Trace | None:
    """The trace of a finished tree, or None when it is not an answered question or not in the sample.

    Recorded is what a model answered (or failed to) and that either saw retrieved chunks or ran under a
    handler given to that very call; with such a handler also an answer that no model of LangChain's wrote.
    The trace is clean (``clean_trace``) and redacted.
    """
    runs = list(tree.models.values())
    searches = ordered_searches(tree)
    found, true_count = _found(tree, searches)
    chosen, is_guess = choose_model_run(runs, tree.answer, [entry.passage.text for entry in found])
    if not _is_answered_question(tree, found, chosen):
        return None
    status = _status(tree, chosen)
    rate = limits.sample_rate if tree.sample_rate is None else tree.sample_rate
    kept_for = reason_to_keep(tree, status, rate)
    if kept_for is None:
        counters.add("sampled_out")
        return None
    answer, generated = _answer(tree, chosen)
    query = next((search.query for search in searches if search.query is not None), None)
    question = _question(tree, query, chosen)
    notes = _notes(tree, searches, runs, chosen, is_guess=is_guess)
    if rate < 1:
        notes["sampling"] = {"rate": rate, "kept_for": kept_for}
    truncated: dict[str, int] = {}
    cut = _Cutter(limits, truncated)
    shown, said = cut("answer", answer), cut("generated", generated) if generated is not None else None
    if said is not None and (blocks := map_answer(shown, said)):
        notes["answer_map"] = [list(block) for block in blocks]
    if true_count > len(found) or len(found) > limits.max_chunks:
        truncated["chunks"] = true_count
    if chosen is not None and chosen.messages > len(chosen.prompt):
        truncated["prompt"] = chosen.messages
    asked = cut("question", question)
    searched = cut("query", query) if query is not None and query != question else None
    prompt = tuple(
        _cut_message(message, cut(f"prompt[{index}]", message.text))
        for index, message in enumerate(chosen.prompt if chosen else ())
    )
    chunks, quiet = _chunks(found[: limits.max_chunks], cut)
    whole = Trace(
        id=tree.trace_id,
        app=tree.app or limits.app,
        question=asked,
        query=searched,
        prompt=prompt,
        chunks=chunks,
        answer=shown,
        generated=said,
        model=chosen.model if chosen else None,
        provider=chosen.provider if chosen else None,
        status=status,
        error=tree.error,
        started_at=_time_of(tree.trace_id),
        duration_ms=((tree.ended or time.monotonic()) - tree.started) * 1_000,
        session_id=tree.session_id,
        root_run_id=tree.root_id,
        partial_tree=tree.is_partial,
        tags=tree.tags,
        metadata={**tree.metadata, "ragblame": notes},
        truncated=truncated,
    )
    clean = clean_trace(whole, has_clean_chunks=True)
    redacted = limits.redactor.redact(clean, quiet=quiet, between=breathe)
    return clean if redacted is clean else clean_trace(redacted)  # from here on it may be spooled and stored


def _is_answered_question(tree: RunTree, found: Sequence[_Found], chosen: ModelRun | None) -> bool:
    if tree.is_muted or (not found and not tree.explicit):
        return False
    if chosen is not None or tree.status is not TraceStatus.OK:
        return True
    # No model of LangChain's ran: an own client, or a chain that only retrieves and formats.
    answer = tree.answer or ""
    return (
        tree.explicit
        and bool(answer)
        and not any(entry.passage.text and entry.passage.text in answer for entry in found)
    )


def _found(tree: RunTree, searches: Sequence[Search]) -> tuple[list[_Found], int]:
    """What the searches returned, or without any the documents that passed between steps; the true count."""
    found = [
        _Found(passage, rank, search.run_id, search.table)
        for search in searches
        for rank, passage in enumerate(search.passages, start=1)
    ]
    if found:
        return found, sum(search.found for search in searches)
    passed = list(tree.passed.values())
    return [_Found(passage, rank, None, tree.table) for rank, passage in enumerate(passed, 1)], len(passed)


def _cut_message(message: Message, text: str) -> Message:
    return message if text is message.text else Message(role=message.role, text=text)


def _chunks(found: Sequence[_Found], cut: "_Cutter") -> tuple[tuple[Chunk, ...], set[int]]:
    """The clean chunks, and the positions of those in which redaction need not look."""
    chunks, quiet = [], set()
    for position, (passage, rank, run_id, table) in enumerate(found):
        known, is_quiet = known_chunks.look_up(passage, cut.room(len(passage.text)))
        if is_quiet:
            quiet.add(position)
        if table is not None:
            table = clean_identity(table, MAX_TABLE_BYTES)
        chunks.append(
            Chunk(
                position=position,
                text=known.text,
                source_id=known.source_id,
                source_table=known.source_table or table,
                rank=rank,
                score=known.score,
                score_name=known.score_name,
                retriever_run=run_id,
                metadata=dict(known.metadata),  # whoever takes the trace may do with it as he likes
                truncated_from=known.truncated_from,
            )
        )
    return tuple(chunks), quiet


def _answer(tree: RunTree, chosen: ModelRun | None) -> tuple[str, str | None]:
    """What the user was shown, and the model's own text where that differs."""
    said = chosen.text if chosen is not None else None
    if chosen is not None and chosen.is_tool_call and not tree.answer:
        # It was stopped before the tool it asked for, or the tool's arguments are its structured answer.
        return ("" if tree.status is TraceStatus.INTERRUPTED else said or ""), None
    shown = tree.answer if tree.answer is not None else said or ""
    return shown, said if said and said != shown else None


def _question(tree: RunTree, query: str | None, chosen: ModelRun | None) -> str:
    if query is not None and query in tree.questions:
        return query
    if tree.questions:
        return tree.questions[0]
    if query is not None:
        return query
    asked = [message.text for message in (chosen.prompt if chosen else ()) if message.role == "human"]
    return asked[-1] if asked else ""


def _status(tree: RunTree, chosen: ModelRun | None) -> TraceStatus:
    """Leaving a synchronous stream ends as success with a cut answer: only the texts tell."""
    said = chosen.text if chosen is not None else None
    if tree.status is TraceStatus.OK and tree.is_streaming and said:
        shown = tree.answer or ""
        if len(shown) < len(said) and said.startswith(shown):
            return TraceStatus.ABANDONED
    return tree.status


def _notes(
    tree: RunTree,
    searches: Sequence[Search],
    runs: Sequence[ModelRun],
    chosen: ModelRun | None,
    *,
    is_guess: bool,
) -> dict[str, Json]:
    """What else an engineer asks about a capture, kept apart from the host's own metadata."""
    notes: dict[str, Json] = {"model_runs": len(runs)}
    if searches:
        notes["retrievers"] = [
            {"name": search.name, "query": (search.query or "")[:_MAX_NOTE]}
            for search in searches[:_MAX_NOTED]
        ]
    elif tree.passed:
        notes["chunks_from"] = "documents passed between steps"
    asked = next((search for search in searches if search.query is not None), None)
    if asked is not None and asked.retrieval:
        notes["retrieval"] = dict(asked.retrieval)  # of the search whose query is the trace's
    if is_guess:
        notes["answering_run"] = "ambiguous"
    failed = [run.error for run in runs if run.error]
    if failed:
        notes["failed_model_runs"] = [error[:_MAX_NOTE] for error in failed[:_MAX_NOTED]]
    if len(runs) > 1:
        notes["attempts"] = [
            {"model": run.model, "ended": _ending(run), "answered": run is chosen}
            for run in runs[-_MAX_NOTED:]
        ]
    ignored = sum(run.ignored for run in runs)
    if ignored:
        notes["ignored_generations"] = ignored
    return notes


def _ending(run: ModelRun) -> str:
    if run.is_ok:
        return "ok"
    return "error" if run.error else "cancelled"  # left by its consumer, or still running at the root's end


def _time_of(trace_id: UUID) -> datetime:
    """When a version 7 id was made, to the microsecond: the tree looks at the wall clock only once."""
    fraction = (trace_id.int >> 64) & 0xFFF
    milliseconds = trace_id.int >> 80
    return _EPOCH + timedelta(milliseconds=milliseconds, microseconds=fraction * 1_000 >> 12)


class _Cutter:
    """Cuts texts to what a field and the whole trace may hold, and notes the true length of those it cut."""

    def __init__(self, limits: Limits, truncated: dict[str, int]) -> None:
        self._limit, self._left, self._truncated = limits.max_field, limits.max_trace, truncated

    def __call__(self, name: str, text: str) -> str:
        room = self.room(len(text))
        if len(text) <= room:
            return text
        self._truncated[name] = len(text)
        return text[:room]

    def room(self, length: int) -> int:
        """How many of these code points may be kept; they are taken off what is left for the trace."""
        kept = min(length, self._limit, self._left)
        self._left -= kept
        return kept
