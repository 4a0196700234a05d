"""From a finished run tree to a Trace: here it is decided what is recorded and which field means what.

It runs in the writer's thread, so that comparing megabytes of text never costs the host chain anything.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ragblame.plugin.answer import choose_model_run
from ragblame.plugin.run_tree import ModelRun, RunTree
from ragblame.records import Chunk, Json, Message, Trace, TraceStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of one trace is kept, and the name of a chain that has none."""

    max_field: int = 1_000_000  # code points of any one text
    max_chunks: int = 200
    app: str = "default"


def assemble(tree: RunTree, limits: Limits) -> Trace | None:
    """The trace of a finished tree, or None when it is not an answered question.

    Recorded is what a model answered (or failed to) and that either saw retrieved chunks or ran under a
    handler given to that very call; with such a handler also an answer that no model of LangChain's wrote.
    """
    runs = list(tree.models.values())
    chunks = tuple(_chunks(tree))
    chosen, is_guess = choose_model_run(runs, tree.answer)
    if not _is_answered_question(tree, chunks, chosen):
        return None
    answer, generated = _answer(tree, chosen)
    query = next((run.query for run in list(tree.retrievers.values()) if not run.is_nested), None)
    question = _question(tree, query, chosen)
    truncated: dict[str, int] = {}
    cutter = _Cutter(limits.max_field, truncated)
    if len(chunks) > limits.max_chunks:
        truncated["chunks"] = len(chunks)
    return Trace(
        id=tree.trace_id,
        app=tree.app or limits.app,
        question=cutter.cut("question", question),
        query=cutter.cut("query", query) if query is not None and query != question else None,
        chunks=tuple(
            _cut_chunk(replace(chunk, position=position), limits.max_field)
            for position, chunk in enumerate(chunks[: limits.max_chunks])
        ),
        prompt=tuple(
            Message(role=message.role, text=cutter.cut(f"prompt[{index}]", message.text))
            for index, message in enumerate(chosen.prompt if chosen else ())
        ),
        answer=cutter.cut("answer", answer),
        generated=cutter.cut("generated", generated) if generated is not None else None,
        model=chosen.model if chosen else None,
        provider=chosen.provider if chosen else None,
        status=_status(tree, chosen),
        error=tree.error,
        started_at=tree.started_at,
        duration_ms=((tree.ended or time.monotonic()) - tree.started) * 1_000,
        session_id=tree.session_id,
        root_run_id=tree.root_id,
        partial_tree=tree.is_partial,
        tags=tree.tags,
        metadata={**tree.metadata, "ragblame": _notes(tree, runs, is_guess=is_guess)},
        truncated=truncated,
    )


def _is_answered_question(tree: RunTree, chunks: Sequence[Chunk], chosen: ModelRun | None) -> bool:
    if not chunks and not tree.explicit:
        return False
    if chosen is not None or tree.status is not TraceStatus.OK:
        return True
    # No model of LangChain's ran: an own client, or a chain that only retrieves and formats.
    answer = tree.answer or ""
    return tree.explicit and bool(answer) and not any(chunk.text and chunk.text in answer for chunk in chunks)


def _chunks(tree: RunTree) -> Iterator[Chunk]:
    """What the outermost retrievers returned; without one, the documents that passed between steps."""
    outer = [chunk for run in list(tree.retrievers.values()) if not run.is_nested for chunk in run.chunks]
    yield from outer
    yield from list(tree.recorded)
    if not outer and not tree.recorded:
        yield from list(tree.passed.values())


def _answer(tree: RunTree, chosen: ModelRun | None) -> tuple[str, str | None]:
    """What the user was shown, and the model's own text where that differs."""
    said = chosen.text if chosen is not None else None
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


def _notes(tree: RunTree, runs: Sequence[ModelRun], *, is_guess: bool) -> dict[str, Json]:
    """What else an engineer asks about a capture, kept apart from the host's own metadata."""
    outer = [run for run in list(tree.retrievers.values()) if not run.is_nested]
    notes: dict[str, Json] = {"model_runs": len(runs)}
    if outer:
        notes["retrievers"] = [{"name": run.name, "query": run.query} for run in outer]
    elif tree.passed:
        notes["chunks_from"] = "documents passed between steps"
    if is_guess:
        notes["answering_run"] = "ambiguous"
    failed = [run.error for run in runs if run.error]
    if failed:
        notes["failed_model_runs"] = list(failed[:10])
    return notes


class _Cutter:
    """Cuts texts to one length and notes the true length of those it cut."""

    def __init__(self, limit: int, truncated: dict[str, int]) -> None:
        self._limit, self._truncated = limit, truncated

    def cut(self, name: str, text: str) -> str:
        if len(text) <= self._limit:
            return text
        self._truncated[name] = len(text)
        return text[: self._limit]


def _cut_chunk(chunk: Chunk, limit: int) -> Chunk:
    if len(chunk.text) <= limit:
        return chunk
    return replace(chunk, text=chunk.text[:limit], truncated_from=len(chunk.text))
