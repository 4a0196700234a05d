"""One request put to one table, step by step: lists by index, words, everything compared, the rows read.

The order is that of what would be missed most: should the time end, the cheap and telling steps are done.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from ragblame.corpus import MAX_K, FoundChunk, Neighbour, ProbeReport, ProbeRequest, ProbeText, ProbeWay
from ragblame.retriever.checked_sources import CheckedSource
from ragblame.retriever.filters import Condition
from ragblame.retriever.probe_clock import Clock, late
from ragblame.retriever.probe_ranks import rank_rows
from ragblame.retriever.probe_rows import Row, RowProbe
from ragblame.retriever.probe_sightings import Sightings
from ragblame.retriever.probe_vectors import DEPTH, Listing, Ranked, VectorProbe, vector_text
from ragblame.retriever.probe_words import WordProbe
from ragblame.retriever.search import hybrid_query

MAX_CHUNKS: Final = 120  # of one report
MAX_RANKED: Final = 24  # rows beyond the lists whose rank is counted
MAX_JOINED: Final = 24  # rows whose neighbours are read
FEW: Final = 10  # rows that are read where there is no time for all
MAX_EXACT_ROWS: Final = 5_000_000  # of a table whose rows are all compared
SMALL: Final = 50_000  # rows of a table where each list may have a scan of its own
_WIDE: Final = {"hnsw.ef_search": "400", "hnsw.iterative_scan": "relaxed_order", "ivfflat.probes": "20"}


@dataclass(slots=True)
class Asking:
    """One request under way."""

    request: ProbeRequest
    checked: CheckedSource
    clock: Clock
    texts: Mapping[ProbeText, str]
    max_exact_rows: int
    seen: Sightings = field(default_factory=Sightings)
    notes: list[str] = field(default_factory=list)
    retrieved: tuple[str, ...] = ()  # of the request, as PostgreSQL writes them
    unread: int = 0  # rows found whose text was not read in time

    def run(self, vectors: Mapping[ProbeText, Sequence[float]], embedding_seconds: float) -> ProbeReport:
        total = self.clock.left
        condition = Condition(self.request.filter, self.checked)
        newer, given = self._newer(condition)
        probe = VectorProbe(
            clock=self.clock,
            checked=self.checked,
            condition=condition,
            newer=newer,
            parameters=given,
            vectors={text: vector_text(vector, self.checked) for text, vector in vectors.items()},
        )
        rows = RowProbe(self.clock, self.checked, condition, newer, given)
        known = rows.known(self.request.retrieved)
        self.retrieved = tuple(dict.fromkeys(known[id] for id in self.request.retrieved if id in known))
        lists = self._lists(probe)
        self._compare(probe, lists, seconds=0.5 * total)
        self._hybrid(vectors, seconds=0.3 * self.clock.left)
        pool = list(dict.fromkeys(row.id for entry in lists for row in entry.rows))
        for words in WordProbe(self.clock, self.checked).search(
            self.texts, pool, limit=DEPTH, seconds=0.4 * self.clock.left
        ):
            self.seen.add_words(words)
        # a row without its text is worth nothing, so the texts come before the last ranks
        read, neighbours = self._read(rows)
        self._count(probe)
        return ProbeReport(
            source=self.checked.source.name,
            metric=self.checked.metric,
            rows=self.checked.rows,
            chunks=tuple(self._found(row, neighbours.get(row.id, (None, None))) for row in read),
            searches=tuple(self.seen.searches),
            unread=self.unread,
            notes=tuple(self.notes),
            seconds=self.clock.spent,
            embedding_seconds=embedding_seconds,
        )

    def _newer(self, condition: Condition) -> tuple[sql.Composable, dict[str, Any]]:
        """Whether a row is newer than the answer, and the parameters of every condition."""
        given = dict(condition.parameters)
        if self.checked.is_row_secured:
            self.notes.append(
                f"{self.checked.source.name} has row security: the role may see a part of it only."
            )
        if self.request.answered_at is None:
            return sql.SQL("NULL::boolean"), given
        if self.checked.created is None:
            self.notes.append(
                f"{self.checked.source.name} does not tell when a row was made: name a created_at column "
                "to see what came after the answer."
            )
            return sql.SQL("NULL::boolean"), given
        given["answered_at"] = self.request.answered_at
        return sql.SQL("({} > %(answered_at)s)").format(self.checked.created), given

    # The lists --------------------------------------------------------------------------------------------

    def _lists(self, probe: VectorProbe) -> list[Listing]:
        """The nearest rows of each text: as the retriever gets them, and deeper."""
        lists = []
        for text in (ProbeText.QUERY, ProbeText.QUESTION, ProbeText.MASKED, ProbeText.CLAIM):
            if text not in probe.vectors:
                if text in self.texts:
                    lists.append(_without_vector(text))
                continue
            is_asked = text in (ProbeText.QUERY, ProbeText.QUESTION)  # what a retriever may be asked with
            for is_filtered in (False, True) if self.request.filter is not None and is_asked else (False,):
                is_indexed = is_asked and self._as_retriever(probe, text, is_filtered)
                with self.clock.settings(_WIDE):
                    wide = self._wide(probe, text, is_filtered)
                lists.append(replace(wide, first=self._k) if is_asked and not is_indexed else wide)
        return lists

    @property
    def _k(self) -> int:
        return self.request.k or max(4, min(len(self.request.retrieved), MAX_K))

    def _as_retriever(self, probe: VectorProbe, text: ProbeText, is_filtered: bool) -> bool:
        """See what the retriever's index gives; False where it would use none."""
        with self.clock.settings(self._settings()):
            if not probe.is_indexed(text, is_filtered=is_filtered, limit=self._k):
                return False
            own = probe.list_rows(text, is_filtered=is_filtered, limit=self._k, seconds=0.2 * self.clock.left)
        self.seen.add_list(own, ProbeWay.RETRIEVER)
        return True

    def _wide(self, probe: VectorProbe, text: ProbeText, is_filtered: bool) -> Listing:
        """A long list, or a sample's, that tells a scan how far to look."""
        size, limit = self.checked.rows, max(DEPTH, self._k)
        if probe.is_indexed(text, is_filtered=is_filtered, limit=limit):
            listing = probe.list_rows(
                text, is_filtered=is_filtered, limit=limit, seconds=0.2 * self.clock.left
            )
            if len(listing.rows) >= limit:
                return listing
        if size is not None and size > SMALL:
            sample = probe.sample_rows(
                text, is_filtered=is_filtered, limit=limit, seconds=0.2 * self.clock.left
            )
            if sample.within is not None:
                return sample
        return probe.list_rows(
            text, is_filtered=is_filtered, limit=limit, seconds=0.3 * self.clock.left, exactly=True
        )

    def _settings(self) -> dict[str, str]:
        """What the retriever's own session sets, or the server's own."""
        source = self.checked.source
        given = {
            "hnsw.ef_search": source.ef_search,
            "hnsw.iterative_scan": source.iterative_scan,
            "ivfflat.probes": source.probes,
        }
        return {name: str(value) for name, value in given.items() if value is not None}

    # Everything compared ----------------------------------------------------------------------------------

    def _compare(self, probe: VectorProbe, lists: list[Listing], *, seconds: float) -> None:
        """Make the lists exact by one scan."""
        pending = [entry for entry in lists if not entry.is_exact and entry.rows]
        done = [entry for entry in lists if entry.is_exact or not entry.rows]
        if self._is_large:
            why = (
                f"approximate: about {self.checked.rows} rows are more than are compared "
                f"({self.max_exact_rows})"
            )
            pending = [replace(entry, note=why) for entry in pending]
        elif pending:
            pending = probe.scan(pending, seconds=seconds)
        for entry in [*done, *pending]:
            # a scan may find thousands within the distance of a crippled index
            self.seen.add_list(entry, ProbeWay.NEAREST, most=max(DEPTH, self._k), also=self.retrieved)
            if entry.first:
                own = replace(entry, rows=entry.rows[: entry.first])
                self.seen.add_list(own, ProbeWay.RETRIEVER)

    @property
    def _is_large(self) -> bool:
        return self.checked.rows is not None and self.checked.rows > self.max_exact_rows

    def _count(self, probe: VectorProbe) -> None:
        """Count the ranks of the strongest rows that stand beyond the lists."""
        beyond = list(dict.fromkeys([*self.retrieved, *self.seen.strongest()]))[:MAX_RANKED]
        self.seen.add_from_lists(beyond)
        for text in (ProbeText.QUERY, ProbeText.QUESTION):
            lacking = [id for id in beyond if not self.seen.has_rank(id, text, is_filtered=False)]
            if text not in probe.vectors or not lacking:
                continue
            if self._is_large:
                self.notes.append("Ranks beyond the lists were not counted: the table has too many rows.")
                return
            counted = rank_rows(
                probe,
                text,
                lacking,
                with_filter=self.request.filter is not None,
                seconds=0.5 * self.clock.left,
            )
            for listing in counted:
                self.seen.add_ranks(listing)
            if counted[0].note:
                self.notes.append(
                    f"Ranks of {len(lacking)} rows beyond the lists ({text}): {counted[0].note}."
                )

    # Our own retriever's order ----------------------------------------------------------------------------

    def _hybrid(self, vectors: Mapping[ProbeText, Sequence[float]], *, seconds: float) -> None:
        model, filter = self.checked.model, self.request.filter
        if model is None or ProbeText.QUERY not in vectors:
            return
        # that retriever's filter is a containment, without operators
        is_filtered = bool(filter) and "$" not in json.dumps(filter, default=str)
        query = hybrid_query(
            self.texts[ProbeText.QUERY],
            vectors[ProbeText.QUERY],
            model,
            k=DEPTH,
            filter=filter if is_filtered else None,
            depth=min(max(DEPTH, 4 * self._k), MAX_K),
        )
        own = {"hnsw.ef_search": query.settings[0], "hnsw.iterative_scan": "strict_order"}
        try:
            with self.clock.settings(own):
                rows, took = self.clock.ask(query.statement, query.parameters, seconds=seconds)
        except psycopg.errors.InsufficientPrivilege:
            self.notes.append(
                "The hybrid order was not asked: GRANT SELECT ON ragblame.document TO the probe's role."
            )
            return
        found = [
            Ranked(id=str(row[0]), distance=row[6], rank=place) for place, row in enumerate(rows or (), 1)
        ]
        self.seen.add_list(
            Listing(
                text=ProbeText.QUERY,
                is_filtered=is_filtered,
                rows=tuple(found),
                is_exact=False,
                is_complete=rows is not None,
                seconds=took,
                note="" if rows is not None else late(took),
            ),
            ProbeWay.HYBRID,
        )

    # What comes back --------------------------------------------------------------------------------------

    def _read(
        self, probe: RowProbe
    ) -> tuple[list[Row], dict[str, tuple[Neighbour | None, Neighbour | None]]]:
        """The strongest rows and the retrieved ones, with what stands before and after them."""
        ids = list(dict.fromkeys([*self.seen.strongest()[:MAX_CHUNKS], *self.retrieved]))
        rows = probe.read(ids, seconds=0.6 * self.clock.left)
        is_whole = rows is not None
        if rows is None:
            self.notes.append(f"Only the {FEW} strongest rows were read in time: raise probe_seconds.")
            rows = probe.read(ids[:FEW], seconds=self.clock.left)
            self.unread = len(ids) - (0 if rows is None else len(rows))
        if rows is None:
            self.notes[-1] = "The time was over before the rows could be read: raise probe_seconds."
            return [], {}
        gone = len(self.request.retrieved) - sum(id in rows for id in self.retrieved)
        if gone > 0 and is_whole:
            self.notes.append(
                f"{gone} of the {len(self.request.retrieved)} retrieved rows are not in "
                f"{self.checked.source.name} any more."
            )
        wanted = [id for id in dict.fromkeys([*self.retrieved, *ids]) if id in rows][:MAX_JOINED]
        joined = probe.neighbours(wanted, seconds=0.4 * self.clock.left)
        if joined is None:
            self.notes.append("Neighbours could not be read in time: index the document column.")
        elif not joined and rows:
            self.notes.append(
                "No neighbours are known: name the corpus' document and position, see docs/probe.md."
            )
        return [rows[id] for id in ids if id in rows], joined or {}

    def _found(self, row: Row, neighbours: tuple[Neighbour | None, Neighbour | None]) -> FoundChunk:
        return FoundChunk(
            id=row.id,
            text=row.text,
            metadata=row.metadata,
            is_retrieved=row.id in self.retrieved,
            created_at=row.created_at,
            is_newer=row.is_newer,
            passes_filter=row.passes if self.request.filter is not None else None,
            sightings=self.seen.of(row.id),
            previous=neighbours[0],
            next=neighbours[1],
        )


def _without_vector(text: ProbeText) -> Listing:
    note = "there is no vector for it: configure the embedding model, or give the vector with the request"
    return Listing(text=text, is_filtered=False, rows=(), is_exact=False, is_complete=False, note=note)
