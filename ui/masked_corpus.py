"""The corpus as results may quote it: its text masked by the rules that hold for captured text.

It exists because evidence from the corpus is stored beside the verdicts, and a secret that capture takes out
of a retrieved chunk must not come back by the side door. Offsets hold, as they do in a masked trace.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ragblame.attribution.jobs.corpora import Corpora
from ragblame.corpus import CorpusProbe, FoundChunk, Neighbour, ProbeReport, ProbeRequest
from ragblame.plugin.redaction import Redactor
from ragblame.records import Chunk, Trace
from ragblame.settings import Settings
from ragblame.traces import new_trace_id


@dataclass(frozen=True, slots=True)
class MaskedCorpus:
    """A ``CorpusProbe`` whose rows are masked; names, ranks and ids are as they were."""

    corpus: CorpusProbe
    redactor: Redactor

    def probe(self, request: ProbeRequest) -> ProbeReport:
        """Raises what the corpus raises. Where a rule fails, the text is masked whole."""
        report = self.corpus.probe(request)
        texts = list(dict.fromkeys(text for chunk in report.chunks for text in _texts(chunk)))
        masked = dict(zip(texts, self._mask(request, texts), strict=True))
        return replace(report, chunks=tuple(_masked(chunk, masked) for chunk in report.chunks))

    def _mask(self, request: ProbeRequest, texts: list[str]) -> list[str]:
        """The texts masked together with what was asked: a secret named in one is one in all."""
        trace = Trace(
            id=new_trace_id(),
            app="corpus",
            question=request.question,
            answer=request.claim,
            chunks=tuple(Chunk(position=at, text=text) for at, text in enumerate(texts)),
            started_at=datetime.now(UTC),
        )
        return [chunk.text for chunk in self.redactor.redact(trace).chunks]


@contextmanager
def open_corpus(settings: Settings) -> Iterator[CorpusProbe | None]:
    """The configured corpora, masked as configured; None: causes do not look into them. Connections that
    were opened are closed at the end."""
    corpora = Corpora.from_settings(settings)
    if corpora is None:
        yield None
        return
    with closing(corpora):
        yield MaskedCorpus(corpora, Redactor.from_settings(settings))


def _texts(chunk: FoundChunk) -> list[str]:
    beside = (chunk.previous, chunk.next)
    return [chunk.text, *(neighbour.text for neighbour in beside if neighbour is not None)]


def _masked(chunk: FoundChunk, masked: dict[str, str]) -> FoundChunk:
    def neighbour(given: Neighbour | None) -> Neighbour | None:
        return None if given is None else replace(given, text=masked[given.text])

    return replace(
        chunk, text=masked[chunk.text], previous=neighbour(chunk.previous), next=neighbour(chunk.next)
    )
