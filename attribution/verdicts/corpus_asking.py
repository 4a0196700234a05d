"""Asks the corpus about the worst spans of an answer whose evidence is not in the prompt, within a bound.

A probe may take seconds a span and lives in a world of its own, so the spans are few, and whatever it raises
becomes a note: the verdicts stand.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ragblame.attribution.verdicts.corpus_causes import asks_corpus, asks_freshness, look_into
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.other_words import Reader
from ragblame.corpus import CorpusProbe, request_for
from ragblame.errors import RagblameError
from ragblame.records import CorpusLook, Span, Trace, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Whom to ask, and about how much."""

    probe: CorpusProbe | None  # None: the corpus is not asked
    max_spans: int  # of one answer
    checks_freshness: bool  # whether a newer row states another value than a supported span, too


def ask_corpus(
    trace: Trace,
    spans: Sequence[Span],
    findings: Sequence[Finding],
    verdicts: list[Verdict],
    asking: Asking,
    *,
    reader_of: Callable[[Span], Reader | None],
    look: Callable[[float], None],
) -> tuple[list[CorpusLook], list[str]]:
    """Ask about the worst spans; their ``verdicts`` are replaced. Returns what was seen, and notes.

    ``reader_of``: has the scorer read texts of the corpus for a span. ``look``: hears the part done before
    each span, and may raise to stop.
    """
    if asking.probe is None or not asking.max_spans:
        return [], []
    flagged = [at for at, verdict in enumerate(verdicts) if asks_corpus(verdict, findings[at])]
    flagged.sort(key=lambda at: (-verdicts[at].severity, at))
    supported = [
        at for at, verdict in enumerate(verdicts) if asks_freshness(verdict, findings[at], spans[at])
    ]
    wanted = [*flagged, *(supported if asking.checks_freshness else [])]
    chosen = wanted[: asking.max_spans]
    looks: list[CorpusLook] = []
    notes = []
    if len(chosen) < len(wanted):
        notes.append(
            f"The corpus was asked about {len(chosen)} of {len(wanted)} spans, the worst first: the "
            "causes of the others do not look into it."
        )
    for done, at in enumerate(chosen):
        look(done / len(chosen))
        try:
            request = request_for(trace, spans[at])
            report = asking.probe.probe(request)
            verdicts[at], seen = look_into(
                trace, spans[at], verdicts[at], findings[at], request, report, reader_of(spans[at])
            )
        except Exception as error:  # the probe's own world: whatever it is, the verdicts stand
            name = "" if isinstance(error, RagblameError) else f"{type(error).__name__}: "
            left = len(chosen) - done
            notes.append(
                f"The corpus was not asked about {left} span{'s' if left > 1 else ''}: "
                f"{name}{' '.join(str(error).split())[:300]}"
            )
            break  # the next would meet the same
        looks.append(seen)
    return sorted(looks, key=lambda one: one.span), notes
