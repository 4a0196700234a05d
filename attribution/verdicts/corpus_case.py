"""One span beside what the corpus answered about it: k, ranks and which searches ran, as causes need them.

It exists so that every rule reads a rank in one way: among the rows of that time, with the filter where the
row passes it, and with the word whether it was counted.
"""

from dataclasses import dataclass
from typing import Final

from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.other_words import Reader
from ragblame.corpus import FoundChunk, ProbeReport, ProbeRequest, ProbeText, ProbeWay, Retrieval
from ragblame.records import CorpusLook, CorpusSearch, Span, Trace

LEAST_K: Final = 4  # where nothing was retrieved and k is not known: LangChain's own default
MAX_NOTE: Final = 500  # code points


@dataclass(frozen=True, slots=True)
class CorpusCase:
    """Everything known of one span and of the corpus."""

    trace: Trace
    span: Span
    finding: Finding
    request: ProbeRequest
    report: ProbeReport
    retrieval: Retrieval
    read: Reader | None

    @property
    def k(self) -> int:
        """Rows the retriever asked for; where nobody knows, as many as it returned."""
        return self.request.k or len(self.request.retrieved) or len(self.trace.chunks) or LEAST_K

    @property
    def is_filtered(self) -> bool:
        """Whether the retriever's filter is known."""
        return self.request.filter is not None

    @property
    def is_untold(self) -> bool:
        """Whether nothing is known of how the retriever searched."""
        return self.request.k is None and not self.is_filtered and self.retrieval.search_type is None

    @property
    def is_hybrid(self) -> bool:
        """Whether the retriever's order is our own fused one."""
        if self.retrieval.search_type is not None:
            return self.retrieval.search_type == "hybrid"
        return any(chunk.score_name == "rrf" for chunk in self.trace.chunks)

    @property
    def is_rewritten(self) -> bool:
        """Whether the retriever was asked something else than the user asked."""
        return self.request.query is not None and self.request.query != self.request.question

    @property
    def knows_fused_order(self) -> bool:
        """Whether our own retriever searched, and its order was asked for."""
        return self.is_hybrid and any(
            self.ran(ProbeText.QUERY, ProbeWay.HYBRID, is_filtered=is_filtered)
            for is_filtered in (False, True)
        )

    def ran(self, text: ProbeText, way: ProbeWay, *, is_filtered: bool) -> bool:
        """Whether the corpus was asked that, to the end."""
        return any(
            search.is_complete
            for search in self.report.searches
            if (search.text, search.way, search.is_filtered) == (text, way, is_filtered)
        )

    def rank(self, row: FoundChunk, text: ProbeText) -> tuple[int, bool] | None:
        """Where the row stood among the rows of that time, and whether that was counted; None: not known."""
        # a row that does not pass the filter has a rank without it only
        is_filtered = self.is_filtered and row.passes_filter is not False
        seen = row.sighting(text, is_filtered=is_filtered)
        if seen is None:
            return None
        return seen.rank if seen.rank_then is None or row.is_newer else seen.rank_then, seen.is_exact

    def fused_rank(self, row: FoundChunk) -> int | None:
        """Its place in our own retriever's order, where that is what retrieved; None beyond the first 50."""
        if not self.is_hybrid:
            return None
        places = [seen.rank for seen in row.sightings if seen.way is ProbeWay.HYBRID]
        return min(places, default=None)

    def look(self) -> CorpusLook:
        """What was asked, for the record."""
        notes = list(self.report.notes)
        if self.retrieval.is_filter_lost:
            notes.append("The retriever's filter could not be captured: the corpus was asked without it.")
        elif self.is_untold:
            notes.append("Neither k nor a filter was captured: a filter may be why a row was not retrieved.")
        runs = {chunk.retriever_run for chunk in self.trace.chunks}
        if len(runs) > 1:
            notes.append(f"The answer had {len(runs)} searches: ranks and k are those of the first.")
        return CorpusLook(
            span=self.span.index,
            table=self.report.source,
            rows=self.report.rows,
            k=self.k,
            is_k_known=self.request.k is not None,
            is_filtered=self.is_filtered,
            seconds=self.report.seconds,
            searches=tuple(
                CorpusSearch(
                    text=search.text.value,
                    way=search.way.value,
                    is_filtered=search.is_filtered,
                    is_exact=search.is_exact,
                    is_complete=search.is_complete,
                    found=search.found,
                    seconds=search.seconds,
                    note=search.note[:MAX_NOTE],
                )
                for search in self.report.searches
            ),
            notes=tuple(note[:MAX_NOTE] for note in notes),
        )
