"""One request put to one table, step by step: lists by index, words, everything compared, the rows read.

The order is that of what would be missed most: should the time end, the cheap and telling steps are done.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import psycopg
from psycopg import sql

from ragblame.corpus import (
    FoundChunk,
    Neighbour,
    ProbeReport,
    ProbeRequest,
    ProbeSearch,
    ProbeText,
    ProbeWay,
    Sighting,
)
from ragblame.retriever.filters import Condition
from ragblame.retriever.probe_clock import Clock
from ragblame.retriever.probe_rows import Row, RowProbe
from ragblame.retriever.probe_vectors import DEPTH, Listing, Ranked, VectorProbe, vector_text
from ragblame.retriever.probe_words import WordListing, WordProbe
from ragblame.retriever.search import MAX_K, hybrid_query
from ragblame.retriever.sources import CheckedSource

MAX_CHUNKS: Final = 120  # of one report
MAX_RANKED: Final = 24  # rows beyond the lists whose rank is counted
MAX_JOINED: Final = 24  # rows whose neighbours are read
MAX_EXACT_ROWS: Final = 5_000_000  # of a table whose rows are all compared
SMALL: Final = 50_000  # rows of a table where each list may have a scan of its own
_RRF: Final = 60  # strength of a chunk: the sum of 1 / (60 + rank) over its sightings, as in search.py
_WIDE: Final = {"hnsw.ef_search": "400", "hnsw.iterative_scan": "relaxed_order", "ivfflat.probes": "20"}


@dataclass(slots=True)
class Asking:
    """One request under way."""

    request: ProbeRequest
    checked: CheckedSource
    clock: Clock
    texts: Mapping[ProbeText, str]
    max_exact_rows: int
    sightings: dict[str, list[Sighting]] = field(default_factory=lambda: defaultdict(list))
    searches: list[ProbeSearch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    retrieved: tuple[str, ...] = ()  # of the request, as PostgreSQL writes them

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
        self._hybrid(vectors, seconds=0.15 * total)
        pool = list(dict.fromkeys(row.id for entry in lists for row in entry.rows))
        for words in WordProbe(self.clock, self.checked).search(
            self.texts, pool, limit=DEPTH, seconds=0.25 * total
        ):
            self._note_search(words.way, words)
            for place, (id, measure) in enumerate(words.rows, start=1):
                self._see(id, words.text, words.way, False, place, words.is_exact, measure, words.seconds)
        self._exact(probe, lists, reserve=0.2 * total)
        found = self._read(rows)
        return ProbeReport(
            source=self.checked.source.name,
            metric=self.checked.metric,
            rows=self.checked.rows,
            chunks=found,
            searches=tuple(self.searches),
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
        self._see_list(own, ProbeWay.RETRIEVER)
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

    def _exact(self, probe: VectorProbe, lists: list[Listing], *, reserve: float) -> None:
        """Make the lists exact by one scan, then count the ranks of rows that stand beyond them."""
        pending = [entry for entry in lists if not entry.is_exact and entry.rows]
        done = [entry for entry in lists if entry.is_exact or not entry.rows]
        size = self.checked.rows
        is_large = size is not None and size > self.max_exact_rows
        if is_large:
            why = f"approximate: about {size} rows are more than are compared ({self.max_exact_rows})"
            pending = [replace(entry, note=why) for entry in pending]
        elif pending:
            pending = probe.scan(pending, seconds=self.clock.left - reserve)
        lists = [*done, *pending]
        for entry in lists:
            self._see_list(entry, ProbeWay.NEAREST)
            if entry.first:
                self._see_list(replace(entry, rows=entry.rows[: entry.first]), ProbeWay.RETRIEVER)
        beyond = list(dict.fromkeys([*self.retrieved, *self._strongest()]))[:MAX_RANKED]
        for text in (ProbeText.QUERY, ProbeText.QUESTION):
            lacking = [id for id in beyond if not self._has_rank(id, text)]
            if text not in probe.vectors or not lacking:
                continue
            if is_large:
                self.notes.append(f"Ranks beyond the lists were not counted: about {size} rows are too many.")
                return
            everything, passing, is_exact, took, note = probe.rank_rows(
                text,
                lacking,
                with_filter=self.request.filter is not None,
                seconds=self.clock.left - 0.5 * reserve,
            )
            for is_filtered, ranked in ((False, everything), (True, passing)):
                for row, counts in ranked:
                    if counts:
                        self._see_row(row, text, ProbeWay.NEAREST, is_filtered, is_exact, took)
            if note:
                self.notes.append(f"Ranks of {len(lacking)} rows beyond the lists ({text}): {note}.")

    def _has_rank(self, id: str, text: ProbeText) -> bool:
        return any(
            seen.text is text and seen.way is ProbeWay.NEAREST and not seen.is_filtered and seen.is_exact
            for seen in self.sightings.get(id, ())
        )

    # Our own retriever's order ----------------------------------------------------------------------------

    def _hybrid(self, vectors: Mapping[ProbeText, Sequence[float]], *, seconds: float) -> None:
        model, filter = self.checked.model, self.request.filter
        if model is None or ProbeText.QUERY not in vectors:
            return
        for is_filtered in (
            (False, True) if filter and "$" not in json.dumps(filter, default=str) else (False,)
        ):
            query = hybrid_query(
                self.texts[ProbeText.QUERY],
                vectors[ProbeText.QUERY],
                model,
                k=DEPTH,
                filter=filter if is_filtered else None,
                depth=min(max(DEPTH, 4 * self._k), MAX_K),
            )
            own = {"hnsw.ef_search": query.settings[0], "hnsw.iterative_scan": "strict_order"}
            listing = Listing(text=ProbeText.QUERY, is_filtered=is_filtered, rows=(), is_exact=False)
            try:
                with self.clock.settings(own):
                    rows, took = self.clock.ask(query.statement, query.parameters, seconds=seconds)
            except psycopg.errors.InsufficientPrivilege:
                self.notes.append(
                    "The hybrid order was not asked: GRANT SELECT ON ragblame.document TO the probe's role."
                )
                return
            if rows is None:
                listing = replace(listing, is_complete=False, note=f"not finished in {took:.1f} s")
            self._note_search(
                ProbeWay.HYBRID,
                replace(listing, seconds=took),
                is_filtered=is_filtered,
                found=len(rows or ()),
            )
            for place, row in enumerate(rows or (), start=1):
                self._see(
                    str(row[0]), ProbeText.QUERY, ProbeWay.HYBRID, is_filtered, place, False, row[6], took
                )

    # What comes back --------------------------------------------------------------------------------------

    def _read(self, probe: RowProbe) -> tuple[FoundChunk, ...]:
        ids = list(dict.fromkeys([*self._strongest()[:MAX_CHUNKS], *self.retrieved]))
        rows = probe.read(ids)
        if rows is None:
            self.notes.append("The time was over before the rows could be read: raise probe_seconds.")
            return ()
        gone = len(self.request.retrieved) - sum(id in rows for id in self.retrieved)
        if gone > 0:
            self.notes.append(
                f"{gone} of the {len(self.request.retrieved)} retrieved rows are not in "
                f"{self.checked.source.name} any more."
            )
        joined = probe.neighbours(
            [id for id in dict.fromkeys([*self.retrieved, *ids]) if id in rows][:MAX_JOINED]
        )
        if joined is None:
            self.notes.append("Neighbours could not be read in time: index the document column.")
        elif not joined and rows:
            self.notes.append(
                "No neighbours are known: name the corpus' document and position, see docs/probe.md."
            )
        return tuple(self._found(rows[id], (joined or {}).get(id, (None, None))) for id in ids if id in rows)

    def _found(self, row: Row, neighbours: tuple[Neighbour | None, Neighbour | None]) -> FoundChunk:
        return FoundChunk(
            id=row.id,
            text=row.text,
            metadata=row.metadata,
            is_retrieved=row.id in self.retrieved,
            created_at=row.created_at,
            is_newer=row.is_newer,
            passes_filter=row.passes if self.request.filter is not None else None,
            sightings=tuple(
                sorted(self.sightings.get(row.id, ()), key=lambda seen: (not seen.is_exact, seen.rank))
            ),
            previous=neighbours[0],
            next=neighbours[1],
        )

    def _strongest(self) -> list[str]:
        """Ids by how high and how often they were seen."""
        strength = {
            id: sum(1 / (_RRF + seen.rank) for seen in sightings) for id, sightings in self.sightings.items()
        }
        return sorted(strength, key=lambda id: (-strength[id], id))

    def _see_list(self, entry: Listing, way: ProbeWay) -> None:
        self._note_search(way, entry, is_filtered=entry.is_filtered)
        for row in entry.rows:
            # a scan may find thousands within the distance of a crippled index
            if row.rank <= max(DEPTH, self._k) or row.id in self.sightings or row.id in self.retrieved:
                self._see_row(row, entry.text, way, entry.is_filtered, entry.is_exact, entry.seconds)

    def _see_row(
        self, row: Ranked, text: ProbeText, way: ProbeWay, is_filtered: bool, is_exact: bool, seconds: float
    ) -> None:
        self._see(row.id, text, way, is_filtered, row.rank, is_exact, row.distance, seconds, row.rank_then)

    def _see(
        self,
        id: str,
        text: ProbeText,
        way: ProbeWay,
        is_filtered: bool,
        rank: int,
        is_exact: bool,
        measure: float,
        seconds: float,
        rank_then: int | None = None,
    ) -> None:
        self.sightings[id].append(
            Sighting(
                text=text,
                way=way,
                is_filtered=is_filtered,
                rank=rank,
                is_exact=is_exact,
                rank_then=rank_then,
                measure=float(measure),
                seconds=seconds,
            )
        )

    def _note_search(
        self,
        way: ProbeWay,
        entry: Listing | WordListing,
        *,
        is_filtered: bool = False,
        found: int | None = None,
    ) -> None:
        self.searches.append(
            ProbeSearch(
                text=entry.text,
                way=way,
                is_filtered=is_filtered,
                is_exact=entry.is_exact,
                is_complete=entry.is_complete,
                found=len(entry.rows) if found is None else found,
                seconds=entry.seconds,
                note=entry.note,
            )
        )


def _without_vector(text: ProbeText) -> Listing:
    note = "there is no vector for it: configure the embedding model, or give the vector with the request"
    return Listing(text=text, is_filtered=False, rows=(), is_exact=False, is_complete=False, note=note)
