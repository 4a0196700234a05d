"""What is asked of the corpus about one span, and what comes back: plain records, and their door.

They stand on the ground floor because both sides need them: the retriever's probe answers with SQL, and the
verdicts, which never see SQL, decide from the answer why the right text was not used.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from ragblame.records import MASK, Json, Span, Trace

MAX_K: Final = 1_000  # pgvector's largest hnsw.ef_search, so no retriever can ask for more


class ProbeText(StrEnum):
    """What the corpus is asked with."""

    QUERY = "query"  # what the retriever was asked; the question where nothing else is known
    QUESTION = "question"  # the user's own, where the query differs from it
    MASKED = "question and claim without the value"  # a wrong value finds nothing: the slot it fills does
    CLAIM = "claim"  # the sentence around the span
    VALUE = "value"  # the span's own words


class ProbeWay(StrEnum):
    """How the corpus is asked."""

    RETRIEVER = "as the retriever"  # its index, its settings, its k
    HYBRID = "hybrid order"  # the fused order of our own retriever
    NEAREST = "nearest vectors"  # deeper than k; exact where every row was compared
    PHRASE = "phrase"  # the words in their order
    ALL_WORDS = "all words"
    SOME_WORDS = "some words"  # ordered by the share of information that stands there; rare words weigh more


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeRequest:
    """One span of one answer, as far as the corpus must know it."""

    question: str
    claim: str  # the sentence around the span
    table: str | None = None  # "schema.table", as the trace's chunks name it; None: the first configured
    query: str | None = None  # what the retriever was asked, when it differs from the question
    value: str | None = None  # the span's own words, when they are not the whole claim
    retrieved: tuple[str, ...] = ()  # row ids, best first
    k: int | None = None  # rows the retriever asked for, [1, 1000]; None: as many as it returned, at least 4
    filter: Mapping[str, Json] | None = None  # the retriever's, in the form of docs/probe.md
    answered_at: datetime | None = None  # with time zone; rows made later are marked newer
    # the caller's vectors, in place of the embedding model's
    vectors: Mapping[ProbeText, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One query that found a chunk, and where it stood."""

    text: ProbeText
    way: ProbeWay
    is_filtered: bool  # among the rows that pass the retriever's filter
    rank: int  # 1-based; exact ranks are shared by rows at the same distance
    is_exact: bool  # False: an index, a sample or a limited list said so
    rank_then: int | None = None  # exact rank among rows no newer than the answer; None: not known
    # NEAREST, RETRIEVER: distance in the table's metric; words: share or density, >= 0; HYBRID: fused score
    measure: float
    seconds: float  # the query took; several sightings share one query


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """The chunk before or after another in the same document."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChunk:
    """A row of the corpus that some query found, or that was retrieved for the answer."""

    id: str
    text: str  # as it is now; cut at 100,000 code points
    metadata: Mapping[str, Json] = field(default_factory=dict)
    is_retrieved: bool  # the trace's retriever returned it
    created_at: datetime | None = None  # None: the table does not tell
    is_newer: bool | None = None  # made after the answer; None: not known
    passes_filter: bool | None = None  # None: no filter was given
    sightings: tuple[Sighting, ...] = ()  # strongest first: exact before approximate, then by rank
    previous: Neighbour | None = None
    next: Neighbour | None = None

    def sighting(
        self, text: ProbeText, way: ProbeWay = ProbeWay.NEAREST, *, is_filtered: bool = False
    ) -> Sighting | None:
        """Where that query saw it, or None."""
        return next(
            (
                seen
                for seen in self.sightings
                if seen.text is text and seen.way is way and seen.is_filtered is is_filtered
            ),
            None,
        )

    @property
    def joined(self) -> tuple[str, ...]:
        """Its text joined with each neighbour's, in reading order: does a fact cut in two become whole?"""
        before = () if self.previous is None else (f"{self.previous.text}\n{self.text}",)
        after = () if self.next is None else (f"{self.text}\n{self.next.text}",)
        return before + after


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSearch:
    """One query that was put to the corpus, found or not."""

    text: ProbeText
    way: ProbeWay
    is_filtered: bool = False
    is_exact: bool
    is_complete: bool = True  # False: it was cut short or not run at all, as the note says
    found: int = 0  # rows
    seconds: float = 0.0
    note: str = ""  # why it is not exact or not complete, with what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeReport:
    """What the corpus holds for one span."""

    source: str  # the table, with its schema
    metric: str  # unit of the distances, e.g. "cosine distance"
    rows: int | None  # of the table, as PostgreSQL estimates; None: never analysed
    chunks: tuple[FoundChunk, ...]  # strongest first
    searches: tuple[ProbeSearch, ...]  # in the order they ran
    unread: int = 0  # rows that were found, and their texts not read in time
    notes: tuple[str, ...] = ()  # what could not be had and why, one sentence each
    seconds: float  # in PostgreSQL, everything together
    embedding_seconds: float = 0.0  # making the query vectors

    @property
    def is_exact(self) -> bool:
        """Whether the nearest vectors are those of the whole table; if not, say "approximate" beside them."""
        nearest = [search for search in self.searches if search.way is ProbeWay.NEAREST]
        return bool(nearest) and all(search.is_exact and search.is_complete for search in nearest)

    @property
    def is_complete(self) -> bool:
        """Whether all that vectors and words find was found and read; if not, "nothing" tells nothing."""
        deep = [search for search in self.searches if search.way not in (ProbeWay.RETRIEVER, ProbeWay.HYBRID)]
        return bool(deep) and not self.unread and all(search.is_complete for search in deep)

    def chunk(self, id: str) -> FoundChunk | None:
        """The chunk with this row id, or None."""
        return next((chunk for chunk in self.chunks if chunk.id == id), None)


class CorpusProbe(Protocol):
    """The door: whatever can answer for a corpus."""

    def probe(self, request: ProbeRequest) -> ProbeReport:
        """Ask the corpus. Raises ``RagblameError``."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """How the retriever searched, as far as capture could learn it: ``metadata.ragblame.retrieval``."""

    k: int | None = None  # [1, 1000]
    filter: Mapping[str, Json] | None = None
    search_type: str | None = None  # "similarity", "mmr", "similarity_score_threshold", "hybrid"
    is_filter_lost: bool = False  # there was one, but it could not be read, or redaction took a part of it

    @property
    def is_plain(self) -> bool:
        """Whether the nearest rows are what it returns; None counts as such."""
        return self.search_type in (None, "similarity")


def retrieval_of(trace: Trace) -> Retrieval:
    """What capture noted; nothing where it could not."""
    notes = trace.metadata.get("ragblame")
    noted = notes.get("retrieval") if isinstance(notes, Mapping) else None
    if not isinstance(noted, Mapping):
        return Retrieval()
    k, filter, search_type = noted.get("k"), noted.get("filter"), noted.get("search_type")
    is_lost = filter is not None and (not isinstance(filter, Mapping) or _holds_mask(filter))
    return Retrieval(
        k=k if isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= MAX_K else None,
        filter=filter if isinstance(filter, Mapping) and filter and not is_lost else None,
        search_type=search_type if isinstance(search_type, str) else None,
        is_filter_lost=is_lost,
    )


def request_for(
    trace: Trace, span: Span, *, k: int | None = None, filter: Mapping[str, Json] | None = None
) -> ProbeRequest:
    """The request about one span of a recorded answer; ``k`` and ``filter`` None: as capture noted them.

    Characters that redaction took out of a text are left out of what is searched.
    """
    value = _plain(trace.answer[span.start : span.end])
    claim = _plain(trace.answer[span.sentence_start : span.sentence_end]) or value
    tables = Counter(chunk.source_table for chunk in trace.chunks if chunk.source_table)
    table = tables.most_common(1)[0][0] if tables else None
    noted = retrieval_of(trace)
    return ProbeRequest(
        question=_plain(trace.question),
        query=None if trace.query is None else _plain(trace.query),
        claim=claim,
        value=value if value and value != claim else None,
        table=table,
        retrieved=tuple(
            dict.fromkeys(
                chunk.source_id
                for chunk in trace.chunks
                if chunk.source_id and chunk.source_table in (None, table)
            )
        ),
        k=noted.k if k is None else k,
        filter=noted.filter if filter is None else filter,
        answered_at=trace.started_at,
    )


def _plain(text: str) -> str:
    return text.replace(MASK, " ").strip()


def _holds_mask(value: Json | Mapping[str, Json]) -> bool:
    if isinstance(value, str):
        return MASK in value
    if isinstance(value, Mapping):
        return any(MASK in key or _holds_mask(entry) for key, entry in value.items())
    return isinstance(value, list) and any(_holds_mask(entry) for entry in value)
