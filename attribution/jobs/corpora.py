"""The configured corpora as one probe: each request goes to the table that its trace's chunks name.

It exists because causes ask "was the right text in the corpus?" and must never be answered from another
corpus than the one that was retrieved from.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from langchain_core.embeddings import Embeddings

from ragblame import database
from ragblame.attribution.jobs.embeddings import load_embeddings
from ragblame.corpus import ProbeReport, ProbeRequest
from ragblame.errors import InputError
from ragblame.retriever.probe import TableProbe
from ragblame.retriever.sources import CorpusSource, our_corpus, source_from
from ragblame.settings import Settings

NONE = "no corpus is configured: name its table in probe_corpora, see docs/probe.md"


@dataclass(slots=True, kw_only=True)
class Corpora:
    """A ``CorpusProbe`` over all configured tables and our own; connects at the first request."""

    settings: Settings
    load: Callable[[], Embeddings]
    _probes: dict[str, TableProbe] = field(default_factory=dict)  # by table
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Corpora | None":
        """As configured; None: causes do not look into the corpus. Connects to nothing."""
        if not settings.probe_spans:
            return None
        return cls(settings=settings, load=lambda: load_embeddings(settings.embeddings))

    def probe(self, request: ProbeRequest) -> ProbeReport:
        """Ask the table of the request. Raises ``InputError`` when none is configured that it could be, and
        like ``TableProbe.probe``."""
        source = self.source_of(request.table)
        with self._lock:
            if source.name not in self._probes:
                self._probes[source.name] = self._open(source)
            probe = self._probes[source.name]
        return probe.probe(request)

    def source_of(self, table: str | None) -> CorpusSource:
        """The corpus that a trace's chunks come from. Raises ``InputError`` when that is not known."""
        configured = [source_from(entries) for entries in self.settings.probe_corpora]
        if table is not None:
            known = (source for source in [*configured, our_corpus()] if source.name == table)
            source = next(known, None)
            if source is None:
                raise InputError(
                    f"{table} is no configured corpus: add it to probe_corpora, see docs/probe.md"
                )
            return source
        if len(configured) != 1:  # a guess could look for the evidence where nobody searched
            raise InputError(
                NONE
                if not configured
                else 'the chunks do not name their table: give the handler source_table="schema.table"'
            )
        return configured[0]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            for probe in self._probes.values():
                probe.close()
            self._probes.clear()

    def _open(self, source: CorpusSource) -> TableProbe:
        url = self.settings.probe_url
        where = database.resolve_url(self.settings) if url is None else url.get_secret_value()
        return TableProbe(where, source, self.load(), seconds=self.settings.probe_seconds)
