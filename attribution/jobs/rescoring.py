"""The worker's score step: chunks that came without a score get distance and exact rank from PostgreSQL.

It never stops an attribution: what cannot be had is said in one sentence, with the reason.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from langchain_core.embeddings import Embeddings

from ragblame import database
from ragblame.attribution.jobs.embeddings import load_embeddings
from ragblame.attribution.jobs.faults import first_line
from ragblame.errors import DatabaseError, InputError, RagblameError
from ragblame.records import MASK, Chunk, Json, Trace
from ragblame.retriever.embedding_models import name_of
from ragblame.retriever.scores import RowScore, models_of, require_same_model, score_rows
from ragblame.retriever.vector_tables import VectorTable, find_vector_table
from ragblame.settings import Settings

SCORE_NAME: Final = "recomputed distance"  # what distinguishes it from a retriever's own
_KEY: Final = "recomputed"  # in a chunk's metadata, under "ragblame"
_MAX_QUERY: Final = 500  # code points from which a query in the notes may have been cut
_SLOW_SECONDS: Final = 600.0  # no ranks are asked of a table so long after it was too slow
_MAX_TABLES: Final = 8  # of one trace


@dataclass(slots=True, kw_only=True)
class Rescorer:
    """Recomputes scores for one worker; loads an embedding model at the first trace that needs it."""

    url: str
    embeddings: str | None = None  # "module:name" of the host's Embeddings; None: all-MiniLM-L6-v2
    seconds: float = 2.0  # for the distances, and again for the ranks, of one table
    load: Callable[[str | None], Embeddings] = load_embeddings
    _verified: set[tuple[str, str]] = field(default_factory=set)  # table, model
    _slow: dict[str, float] = field(default_factory=dict)  # table -> monotonic

    @classmethod
    def from_settings(cls, url: str, settings: Settings) -> "Rescorer | None":
        """As configured; None: scores are not recomputed."""
        if not settings.recompute_scores:
            return None
        return cls(url=url, embeddings=settings.embeddings, seconds=settings.recompute_seconds)

    def rescore(self, trace: Trace) -> tuple[Trace, list[str]]:
        """The trace with scores for the chunks that came without, and notes about them.

        Such a score is named ``SCORE_NAME``; metric, rank, number of rows, table and model stand in the
        chunk's metadata under ``ragblame.recomputed``. One from an earlier run is made anew. Raises
        ``DatabaseError`` when PostgreSQL is away; everything else that goes wrong is a note.
        """
        lacking = [chunk for chunk in trace.chunks if chunk.score is None or chunk.score_name == SCORE_NAME]
        if not lacking:
            return trace, []
        found: dict[int, dict[str, Json]] = {}
        problems: dict[str, list[int]] = defaultdict(list)
        groups: dict[tuple[str, str], list[Chunk]] = defaultdict(list)
        for chunk in lacking:
            try:
                groups[_table_of(chunk), _query_of(trace, chunk)].append(chunk)
            except InputError as error:
                problems[str(error)].append(chunk.position)
        for number, ((name, query), chunks) in enumerate(groups.items()):
            if number >= _MAX_TABLES:
                problems["too many tables and queries in one trace"] += [chunk.position for chunk in chunks]
                continue
            try:
                for position, outcome in self._measure(name, query, chunks):
                    if isinstance(outcome, str):
                        problems[outcome].append(position)
                    else:
                        found[position] = outcome
            except DatabaseError:
                raise
            except Exception as error:  # embeddings and tables are the host's: anything may come
                if _is_away(error):
                    line = first_line(error)
                    raise DatabaseError(
                        f"scores: PostgreSQL failed: {line}; run `ragblame doctor`"
                    ) from error
                reason = (
                    str(error) if isinstance(error, RagblameError) else f"{type(error).__name__}: {error}"
                )
                problems[" ".join(reason.split())[:300]] += [chunk.position for chunk in chunks]
        scored = tuple(_scored(chunk, found.get(chunk.position)) for chunk in trace.chunks)
        return replace(trace, chunks=scored), list(_notes(found, problems))

    def _measure(
        self, name: str, query: str, chunks: Sequence[Chunk]
    ) -> Iterator[tuple[int, dict[str, Json] | str]]:
        """Position and finding, or the reason why there is none, of each chunk of one table and query."""
        with database.connect(self.url, read_only=True, autocommit=True) as conn:
            table = find_vector_table(conn, name)
            ids = sorted({chunk.source_id or "" for chunk in chunks if table.may_hold(chunk.source_id or "")})
            if not ids:
                yield from ((chunk.position, f"its row id is no {table.id_type}") for chunk in chunks)
                return
            embeddings = self._embeddings_for(conn, table, ids)
            vector = embeddings.embed_query(query)
            is_slow = time.monotonic() - self._slow.get(table.name, -_SLOW_SECONDS) < _SLOW_SECONDS
            rows = score_rows(conn, table, ids, vector, seconds=self.seconds, with_rank=not is_slow)
        if not is_slow and any(row.rank is None for row in rows.values()):
            self._slow[table.name] = time.monotonic()
        for chunk in chunks:
            row = rows.get(chunk.source_id or "")
            if not table.may_hold(chunk.source_id or ""):
                yield chunk.position, f"its row id is no {table.id_type}"
            elif row is None:
                yield chunk.position, f"its row is not in {table.name} any more"
            elif not _is_same_text(chunk, row.text):
                yield chunk.position, f"its row in {table.name} holds another text by now"
            else:
                yield chunk.position, _finding(table, row, name_of(embeddings))

    def _embeddings_for(
        self, conn: psycopg.Connection[Any], table: VectorTable, ids: Sequence[str]
    ) -> Embeddings:
        """The model that made the table's vectors. Raises ``InputError`` when it is not at hand."""
        if table.is_ours:
            models = models_of(conn, ids)
            if len(models) != 1:
                raise InputError(
                    f"rows of {len(models)} embedding models in {table.name} cannot be ranked together"
                    if models
                    else f"its row is not in {table.name} any more"
                )
            embeddings = self.load(self.embeddings)
            if name_of(embeddings) != models[0].name:
                raise InputError(
                    f"{table.name} was embedded with {models[0].name}, and the worker has "
                    f"{name_of(embeddings)}: name the right one with the setting `embeddings`"
                )
            return embeddings
        embeddings = self.load(self.embeddings)
        known = (table.name, name_of(embeddings))
        if known not in self._verified:
            require_same_model(conn, table, ids[0], embeddings)
            self._verified.add(known)
        return embeddings


def _is_away(error: Exception) -> bool:
    """Whether the server was lost in the middle: trying again may help, as it does not for other faults."""
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate or "57P01")[:3] in ("57P", "080")


def write_scores(conn: psycopg.Connection[Any], trace: Trace) -> None:
    """Store the recomputed scores of a trace's chunks; a retriever's own score is never replaced."""
    from psycopg.types.json import Jsonb

    for chunk in trace.chunks:
        if chunk.score_name == SCORE_NAME:
            conn.execute(
                "UPDATE ragblame.trace_chunk SET score = %s, score_name = %s, metadata = %s "
                "WHERE trace_id = %s AND position = %s AND (score IS NULL OR score_name = %s)",
                (
                    chunk.score,
                    chunk.score_name,
                    Jsonb(dict(chunk.metadata)),
                    trace.id,
                    chunk.position,
                    SCORE_NAME,
                ),
            )


def _table_of(chunk: Chunk) -> str:
    if not chunk.source_id:
        raise InputError("no row id is known")
    if not chunk.source_table:
        raise InputError('no table is known: give the handler source_table="schema.table"')
    return chunk.source_table


def _query_of(trace: Trace, chunk: Chunk) -> str:
    """What the chunk was searched by. Raises ``InputError`` when the whole of it is not known."""
    query = trace.query if trace.query is not None else trace.question
    is_cut = ("query" if trace.query is not None else "question") in trace.truncated
    runs = list(dict.fromkeys(other.retriever_run for other in trace.chunks))
    if len(runs) > 1:
        notes = trace.metadata.get("ragblame")
        searches = notes.get("retrievers") if isinstance(notes, dict) else None
        if not isinstance(searches, list) or len(searches) != len(runs):
            raise InputError("the trace has several searches, and which of them had which query is not known")
        search = searches[runs.index(chunk.retriever_run)]
        own = search.get("query") if isinstance(search, dict) else None
        query = own if isinstance(own, str) else ""
        is_cut = len(query) >= _MAX_QUERY
    if not query.strip():
        raise InputError("the query is not known")
    if is_cut or MASK in query:
        raise InputError(f"the query was {'cut' if is_cut else 'masked'} at capture")
    return query


def _is_same_text(chunk: Chunk, text: str) -> bool:
    """Whether a row holds what was retrieved, as far as it was captured and is not masked."""
    if chunk.truncated_from is not None and len(chunk.text) < chunk.truncated_from == len(text):
        text = text[: len(chunk.text)]
    if chunk.text == text:
        return True
    return len(chunk.text) == len(text) and all(
        ours in (theirs, MASK, "\u2400", "\ufffd") for ours, theirs in zip(chunk.text, text, strict=True)
    )


def _finding(table: VectorTable, row: RowScore, model: str) -> dict[str, Json]:
    return {
        "distance": row.distance,
        "metric": table.metric,
        "rank": row.rank,
        "rows": row.rows,
        "table": table.name,
        "model": model,
    }


def _scored(chunk: Chunk, finding: dict[str, Json] | None) -> Chunk:
    if finding is None:
        return chunk
    distance = finding["distance"]
    assert isinstance(distance, float)
    ours = chunk.metadata.get("ragblame")
    metadata = {**chunk.metadata, "ragblame": {**(ours if isinstance(ours, dict) else {}), _KEY: finding}}
    return replace(chunk, score=distance, score_name=SCORE_NAME, metadata=metadata)


def _notes(found: dict[int, dict[str, Json]], problems: dict[str, list[int]]) -> Iterator[str]:
    by_source: dict[tuple[Json, Json, Json], list[int]] = defaultdict(list)
    for position, finding in found.items():
        by_source[_text(finding["metric"]), _text(finding["table"]), finding["rank"] is None].append(position)
    for (metric, table, is_rankless), positions in by_source.items():
        rank = "" if is_rankless else " and exact rank"
        late = "; ranking its rows took too long" if is_rankless else ""
        source = f"{metric}{rank} recomputed from {table} as it is now{late}"
        yield f"No score came with {_chunks(positions)}: {source}."
    for reason, positions in problems.items():
        yield f"No score came with {_chunks(positions)}, and none was recomputed: {reason}."


def _text(value: Json) -> str:
    return str(value)


def _chunks(positions: Sequence[int]) -> str:
    named = ", ".join(str(position + 1) for position in sorted(positions))
    return f"chunk{'s' if len(positions) > 1 else ''} {named}"
