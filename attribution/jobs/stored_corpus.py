"""What the corpus was asked and what it answered, as rows and back: the one place that knows that form."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Final, TypeAlias

from ragblame.json_values import clean_text
from ragblame.records import (
    Cause,
    CorpusEvidence,
    CorpusLook,
    CorpusSearch,
    Explanation,
    PromptLine,
    SupportState,
)

Row: TypeAlias = tuple[Any, ...]
Rows: TypeAlias = Callable[[str, str, str], list[Row]]  # (table, columns, order) -> rows of the trace

LOOK_COLUMNS: Final = "span source rows k is_k_known is_filtered seconds searches notes"
EVIDENCE_COLUMNS: Final = (
    "span source row_id state rule cause start_at end_at quote stated rank is_exact question_rank found_by "
    "passes_filter is_newer created_at joined_with"
)


def look_rows(e: Explanation) -> list[Row]:
    """Rows of corpus_look: trace id, then LOOK_COLUMNS."""
    return [
        (
            e.trace.id, look.span, clean_text(look.table), look.rows, look.k, look.is_k_known,
            look.is_filtered, look.seconds, json.dumps([asdict(search) for search in look.searches]),
            [clean_text(note) for note in look.notes],
        )
        for look in e.corpus_looks
    ]  # fmt: skip


def evidence_rows(e: Explanation) -> list[Row]:
    """Rows of corpus_evidence: trace id, place, then EVIDENCE_COLUMNS."""
    return [
        (e.trace.id, place, *_evidence_row(verdict.span, evidence))
        for verdict in e.verdicts
        for place, evidence in enumerate(verdict.corpus_evidence)
    ]


def _evidence_row(span: int, c: CorpusEvidence) -> Row:
    return (
        span, clean_text(c.table), clean_text(c.row_id), c.state.value, c.rule, c.cause and c.cause.value,
        c.start, c.end, clean_text(c.quote), c.stated and clean_text(c.stated), c.rank, c.is_exact,
        c.question_rank, list(c.found_by), c.passes_filter, c.is_newer, c.created_at,
        c.joined_with and clean_text(c.joined_with),
    )  # fmt: skip


def lines_to_array(lines: Sequence[PromptLine]) -> str:
    """Lines of the prompt as PostgreSQL writes an array of {message, start, end}."""
    return "{" + ",".join(f"{{{line.message},{line.start},{line.end}}}" for line in lines) + "}"


def lines_from_array(value: Sequence[Sequence[int]]) -> tuple[PromptLine, ...]:
    """The inverse of ``lines_to_array``."""
    return tuple(PromptLine(message=message, start=start, end=end) for message, start, end in value)


def read_looks(rows: Rows) -> tuple[CorpusLook, ...]:
    """What the corpus was asked, by span."""
    return tuple(
        CorpusLook(
            span=span,
            table=table,
            rows=size,
            k=k,
            is_k_known=is_k_known,
            is_filtered=is_filtered,
            seconds=seconds,
            searches=tuple(CorpusSearch(**search) for search in searches),
            notes=tuple(notes),
        )
        for span, table, size, k, is_k_known, is_filtered, seconds, searches, notes in rows(
            "corpus_look", LOOK_COLUMNS, "span"
        )
    )


def read_evidence(rows: Rows) -> dict[int, tuple[CorpusEvidence, ...]]:
    """Rows of the corpus that are evidence, by span."""
    found: dict[int, list[CorpusEvidence]] = defaultdict(list)
    for row in rows("corpus_evidence", EVIDENCE_COLUMNS, "span, place"):
        span, table, row_id, state, rule, cause, start, end, quote, stated, rank, is_exact, *rest = row
        question_rank, found_by, passes_filter, is_newer, created_at, joined_with = rest
        found[span].append(
            CorpusEvidence(
                table=table,
                row_id=row_id,
                state=SupportState(state),
                rule=rule,
                cause=None if cause is None else Cause(cause),
                start=start,
                end=end,
                quote=quote,
                stated=stated,
                rank=rank,
                is_exact=is_exact,
                question_rank=question_rank,
                found_by=tuple(found_by),
                passes_filter=passes_filter,
                is_newer=is_newer,
                created_at=created_at,
                joined_with=joined_with,
            )
        )
    return {span: tuple(each) for span, each in found.items()}
