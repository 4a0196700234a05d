"""From another tracer's steps to the one Trace they become.

Formats differ in spelling only: what is the question, which documents reached the model and which model run
answered is decided here, once, by the rules of our own capture.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from ragblame.plugin.answer import choose_model_run
from ragblame.plugin.answer_map import Block, map_answer
from ragblame.records import Chunk, Trace, TraceStatus
from ragblame.settings import Settings
from ragblame.ui.import_steps import Step, StepTree, import_identity, settled_trace_id
from ragblame.ui.import_values import Document, answer_of, cut_messages, question_of, text_of


def assemble(steps: Sequence[Step], source: str, app: str | None, settings: Settings) -> Trace | None:
    """The trace of all steps of one tracer's trace, or None when no model answered in it.

    ``source`` names the format. Texts longer than the capture limits are cut, with their true length noted.
    """
    tree = StepTree(steps)
    root = tree.outermost()
    if root is None:
        return None
    ended = tree.outermost(is_run=True) or root
    documents, searches = tree.documents()
    if all(isinstance(document.own.get("position"), int) for _, document in documents):
        documents.sort(key=lambda pair: pair[1].own["position"])
    own = next((step.own for step in steps if step.own.get("trace_id")), {})
    answer = _own_text(own, root.output) or answer_of(root.output)
    texts = [document.text for _, document in documents]
    run, is_guess = _answering_run(tree.models(), answer, texts, is_broken=not ended.is_ok)
    if run is None and not (documents and answer):
        return None
    said = run.text if run is not None else None
    shown = answer if answer is not None else said or ""
    queries = (_own_text(own, step.input) or question_of(step.input) for step in searches)
    query = next((text for text in queries if text is not None), None)
    asked = [message.text for message in (run.prompt if run is not None else ()) if message.role == "human"]
    question = _own_text(own, root.input) or question_of(root.input) or query or (asked[-1] if asked else "")
    started = min((step.started for step in steps if step.started is not None), default=None)
    identity = import_identity(source, root.trace)
    truncated: dict[str, int] = {}

    def cut(name: str, text: str) -> str:
        if len(text) <= settings.capture_max_field:
            return text
        truncated[name] = len(text)
        return text[: settings.capture_max_field]

    prompt, cut_from = cut_messages(run.prompt if run is not None else (), settings.capture_max_field)
    truncated |= cut_from
    if len(documents) > settings.capture_max_chunks:
        truncated["chunks"] = len(documents)
    notes: dict[str, Any] = {"from": source, "trace": root.trace, "root": ended.id, "steps": len(steps)}
    if is_guess:
        notes["answering_run"] = "ambiguous"
    if started is None:
        notes["started_at"] = "unknown: the time of the import stands for it"
    at = started or datetime.now(UTC)
    shown, said = cut("answer", shown), cut("generated", said) if said and said != shown else None
    # An export of ours comes back as it was, with the map that it has or has not.
    blocks = map_answer(shown, said) if said is not None and not own else ()
    return Trace(
        id=_own_id(own) or settled_trace_id(identity, at),
        app=app or text_of(own.get("app")) or root.service or root.name or source,
        question=cut("question", question),
        query=cut("query", query) if query is not None and query != question else None,
        chunks=tuple(
            _chunk(document, position, rank, settings.capture_max_field)
            for position, (rank, document) in enumerate(documents[: settings.capture_max_chunks])
        ),
        prompt=prompt,
        answer=shown,
        generated=said,
        model=run.model if run is not None else None,
        provider=run.provider if run is not None else None,
        status=_status(ended, own),
        error=ended.error,
        started_at=at,
        duration_ms=_milliseconds(ended, steps),
        session_id=next((step.session for step in (root, *steps) if step.session), None),
        root_run_id=identity,
        origin="import",
        tags=next((step.tags for step in (root, *tree.records()) if step.tags), ()),
        metadata=_metadata(tree, root, notes, blocks),
        truncated=truncated,
    )


def _answering_run(
    models: Sequence[Step], answer: str | None, chunks: Sequence[str], *, is_broken: bool
) -> tuple[Step | None, bool]:
    """The model run that answered, and whether that is a guess."""
    failed = [step for step in models if not step.is_ok and not step.in_retriever]
    if answer is None and is_broken and failed:
        return failed[-1], False  # it broke off there: an earlier run is no answer
    chosen, is_guess = choose_model_run(cast(Any, models), answer, chunks)
    return cast(Step | None, chosen), is_guess


def _metadata(
    tree: StepTree, root: Step, notes: Mapping[str, Any], blocks: Sequence[Block]
) -> dict[str, Any]:
    """Where it came from first, because metadata is bounded when stored; then the host's own.

    ``blocks``: what shown answer and model's text share, kept where our own capture keeps it.
    """
    found: dict[str, Any] = {"import": notes, **({"ragblame": {}} if blocks else {})}
    for step in (*tree.records(), root):
        found |= {key: entry for key, entry in step.metadata.items() if key != "import"}
    if blocks:
        told = found["ragblame"]
        found["ragblame"] = {
            **(told if isinstance(told, Mapping) else {}),
            "answer_map": [list(block) for block in blocks],
        }
    return found


def _chunk(document: Document, position: int, rank: int, longest: int) -> Chunk:
    own, text = document.own, document.text
    length = _count(own.get("truncated_from"))
    return Chunk(
        position=position,
        text=text[:longest],
        source_id=document.identity,
        source_table=text_of((own or document.metadata).get("source_table")),
        rank=_count(own.get("rank")) if own else rank,
        score=document.score,
        score_name=document.score_name,
        metadata=dict(document.metadata),
        truncated_from=len(text) if len(text) > longest else length,
    )


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _status(root: Step, own: Mapping[str, Any]) -> TraceStatus:
    named = own.get("status")
    if isinstance(named, str) and named in set(TraceStatus):
        return TraceStatus(named)
    if root.is_ok:
        return TraceStatus.OK
    kind = (root.error or "").split(":")[0].split("(")[0].rpartition(".")[2].strip()
    if kind in ("CancelledError", "KeyboardInterrupt"):
        return TraceStatus.CANCELLED
    if kind == "GeneratorExit":
        return TraceStatus.ABANDONED
    return TraceStatus.INTERRUPTED if kind in ("GraphInterrupt", "NodeInterrupt") else TraceStatus.ERROR


def _milliseconds(root: Step, steps: Sequence[Step]) -> float:
    started = root.started or min((step.started for step in steps if step.started), default=None)
    ended = root.ended or max((step.ended for step in steps if step.ended), default=None)
    return max(0.0, (ended - started).total_seconds() * 1_000) if started and ended else 0.0


def _own_text(own: Mapping[str, Any], value: Any) -> str | None:
    """A text that an export of ours wrote is meant as it stands, even when it looks like JSON."""
    return text_of(value) if own else None


def _own_id(own: Mapping[str, Any]) -> UUID | None:
    """The id of the trace this was exported from, when it is one of ours."""
    try:
        found = UUID(own["trace_id"])
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
    return found if found.version == 7 else None
