"""The only file that knows the order of steps: from a trace to an explanation.

align, spans, support, layout, fitness, v(S) with its shares, the counterfactual where memory agrees,
saliency, rollout, verdict and cause, and for flagged spans a look into the corpus. What a step cannot do is a
note, never a silent replacement: without a usable scorer the verdicts rest on the text alone and say so.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from ragblame import __version__
from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.alignment_notes import alignment_notes
from ragblame.attribution.inputs import ChunkInput, PromptInput, trace_of
from ragblame.attribution.repetitions import repetitions
from ragblame.attribution.spans import segment
from ragblame.attribution.verdicts.causes import judge
from ragblame.attribution.verdicts.corpus_asking import Asking, ask_corpus
from ragblame.attribution.verdicts.fusion import with_probabilities
from ragblame.attribution.verdicts.learned import SupportReader
from ragblame.attribution.verdicts.normalise import words
from ragblame.attribution.verdicts.other_words import Reader, with_conflicts, with_reading
from ragblame.attribution.verdicts.premises import by_probability, premises_of
from ragblame.attribution.verdicts.prompt_lines import with_prompt_lines
from ragblame.attribution.verdicts.reading import settle
from ragblame.attribution.verdicts.support import Finding, examine
from ragblame.attribution.verdicts.table import Decision, Influence, asks_counterfactual, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT, Thresholds
from ragblame.corpus import CorpusProbe
from ragblame.errors import AlignmentError, InputError, MissingExtraError, ModelError, RagblameError
from ragblame.records import (
    Alignment,
    AlignmentState,
    Attribution,
    CoalitionValues,
    Cost,
    Explanation,
    Fitness,
    Method,
    ScorerRef,
    Span,
    SupportState,
    TokenHeat,
    Trace,
    Verdict,
)

if TYPE_CHECKING:
    from ragblame.attribution.layout import Layout
    from ragblame.attribution.methods.heat import HeatResult
    from ragblame.attribution.scorer import TransformersScorer

MAX_HEAT_SPANS = 64  # spans that get token heat and attention shares: each one costs a backward pass
SPANS_AT_ONCE = 16  # of them, between two looks at should_abort
MAX_READ = 10  # chunks in the prompt, and as many outside it, that the model may read for one span
MAX_READ_SPANS = 16
MAX_CORPUS_SPANS = 8  # spans of an answer that the corpus is asked about: each may take seconds


Progress = Callable[[str, float], None]  # name of the step, part of it done in [0, 1]


@dataclass(slots=True)
class _Measured:
    """What the scorer could say about one answer."""

    fitness: Fitness | None = None
    attributions: list[Attribution] = field(default_factory=list)
    heats: list[TokenHeat] = field(default_factory=list)
    coalitions: CoalitionValues | None = None
    influences: dict[int, Influence] = field(default_factory=dict)  # by span; empty: text alone decides
    layout: "Layout | None" = None  # None: the scorer cannot read the answer
    rewritten: dict[int, str | None] = field(default_factory=dict)  # by span: without what supports it
    notes: list[str] = field(default_factory=list)


class Options(TypedDict, total=False):
    """What every debugger takes, whatever its scorer; ``Debugger`` says what each means."""

    max_exact_chunks: int
    sampled_coalitions: int
    sampled_precision: float
    thresholds: Thresholds
    probe: CorpusProbe | None
    max_corpus_spans: int
    checks_freshness: bool
    support_reader: SupportReader | None


class Debugger:
    """Explains answers, one thread at a time. Make one per process: ``from_pretrained`` or ``text_only``."""

    def __init__(
        self,
        scorer: "TransformersScorer | None",
        *,
        max_exact_chunks: int = 10,
        sampled_coalitions: int = 256,
        sampled_precision: float = 0.05,
        thresholds: Thresholds = DEFAULT,
        probe: CorpusProbe | None = None,
        max_corpus_spans: int = MAX_CORPUS_SPANS,
        checks_freshness: bool = False,
        support_reader: SupportReader | None = None,
    ) -> None:
        """``max_exact_chunks``: with more in the prompt, shares are sampled from at most
        ``sampled_coalitions`` coalitions, or until each standard error is ``sampled_precision`` nats.
        ``probe``: is asked why the evidence of flagged spans was not in the prompt, for the worst
        ``max_corpus_spans`` of an answer; with ``checks_freshness`` also whether a newer row states another
        value than a supported span. None: causes do not look into the corpus. ``support_reader``: reads
        the text beside the rules; None: they decide alone."""
        self.scorer = scorer
        self.probe = probe
        self.support_reader = support_reader
        self.max_corpus_spans = max_corpus_spans
        self.checks_freshness = checks_freshness
        self.max_exact_chunks = max_exact_chunks
        self.sampled_coalitions = sampled_coalitions
        self.sampled_precision = sampled_precision
        self.thresholds = thresholds

    @classmethod
    def from_pretrained(
        cls,
        model: str | None = None,
        *,
        is_own_model: bool = False,
        threads: int | None = None,
        batch_size: int = 16,
        cache_bytes: int = 1 << 29,
        device: str | None = None,
        **options: Unpack[Options],
    ) -> "Debugger":
        """Load a scorer from a folder or the local cache, never from the network.

        ``model``: None for the shipped small model. ``is_own_model``: it wrote the answers. ``threads``: of
        torch, None for its default. ``cache_bytes``: keys and values that coalitions may share at once.
        ``options``: as for the class. Raises ``ModelError`` when it cannot be loaded, ``MissingExtraError``
        when torch or transformers is not installed.
        """
        try:
            from ragblame.attribution.scorer import TransformersScorer
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"a scorer needs {error.name}: pip install 'ragblame[attribution]'"
            ) from error

        scorer = TransformersScorer.from_pretrained(
            model,
            is_own_model=is_own_model,
            threads=threads,
            batch_size=batch_size,
            cache_bytes=cache_bytes,
            device=device,
        )
        return cls(scorer, **options)

    @classmethod
    def text_only(cls, **options: Unpack[Options]) -> "Debugger":
        """Without a scorer: verdicts rest on the text alone. ``options``: as for the class."""
        return cls(None, **options)

    def explain(
        self,
        *,
        question: str,
        chunks: Sequence[ChunkInput],
        answer: str,
        prompt: PromptInput = None,
        should_abort: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain an answer from plain values; needs no database.

        ``chunks``: strings, ``Chunk`` records or documents with ``page_content``, in the order retrieved.
        ``prompt``: what was really sent, as text or messages; None assumes a default one with all chunks.
        Raises like ``explain_trace``.
        """
        trace = trace_of(question, chunks, answer, prompt)
        return self.explain_trace(trace, should_abort=should_abort, progress=progress)

    def explain_trace(
        self,
        trace: Trace,
        *,
        should_abort: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """Explain the answer the user saw.

        Raises ``InputError`` for an empty answer or misnumbered chunks, ``RagblameError`` when
        ``should_abort`` (polled between batches) says so. A method or scorer that cannot serve the trace
        becomes a note in the explanation.
        """
        if not trace.answer.strip():
            raise InputError("the answer is empty: there is nothing to attribute; check what was captured")
        if any(chunk.position != index for index, chunk in enumerate(trace.chunks)):
            raise InputError("chunk positions do not count from 0: number the chunks in retrieval order")
        run = _Run(self, trace, should_abort or (lambda: False), progress or (lambda step, part: None))
        return run.explain()


class _Run:
    """One explanation under way."""

    def __init__(
        self, debugger: Debugger, trace: Trace, should_abort: Callable[[], bool], progress: Progress
    ) -> None:
        self.scorer = debugger.scorer
        self.max_exact_chunks = debugger.max_exact_chunks
        self.sampled_coalitions = debugger.sampled_coalitions
        self.sampled_precision = debugger.sampled_precision
        self.thresholds = debugger.thresholds
        self.support_reader = debugger.support_reader
        self.asking = Asking(
            probe=debugger.probe,
            max_spans=debugger.max_corpus_spans,
            checks_freshness=debugger.checks_freshness,
        )
        self.trace = trace
        self.should_abort = should_abort
        self.progress = progress

    def explain(self) -> Explanation:
        started = time.perf_counter()
        before = self.scorer.cost if self.scorer is not None else Cost()
        trace = self.trace
        self._look("align", 0.0)
        has_prompt = any(message.text.strip() for message in trace.prompt)
        alignments = align_chunks(trace.chunks, trace.prompt) if has_prompt else ()
        segmentation = segment(trace.answer, trace.question)
        spans = segmentation.spans
        self._look("support", 0.0)
        findings = examine(
            trace.question, trace.answer, spans, trace.chunks, alignments if has_prompt else None
        )
        self._look("support", 0.5)
        findings, support_notes = with_probabilities(
            trace, spans, findings, alignments if has_prompt else None, self.support_reader
        )
        measured = self._measure(alignments, spans, findings)
        findings = self._read_chunks(spans, findings, alignments if has_prompt else None, measured)
        self._look("verdict", 0.0)
        read = findings
        findings = tuple(
            settle(
                by_probability(finding, measured.influences.get(span.index), self.thresholds),
                measured.influences.get(span.index),
                self.thresholds,
            )
            for span, finding in zip(spans, findings, strict=True)
        )
        if has_prompt:
            findings = with_prompt_lines(trace, spans, findings, alignments)
        verdicts: list[Verdict] = []
        decisions: list[Decision] = []
        for span, finding in zip(spans, findings, strict=True):
            influence = measured.influences.get(span.index)
            decision = decide(finding.support, influence, self.thresholds)
            decisions.append(decision)
            verdicts.append(judge(trace, span, finding, decision, influence, self.thresholds))
        self.progress("verdict", 1.0)
        looks, corpus_notes = ask_corpus(
            self.trace,
            spans,
            findings,
            verdicts,
            self.asking,
            reader_of=lambda span: self._reader(span, measured),
            look=lambda part: self._look("corpus", part),
        )
        notes = [
            *([segmentation.note] if segmentation.note else []),
            *alignment_notes(alignments),
            *measured.notes,
            *support_notes,
            *corpus_notes,
        ]
        return Explanation(
            trace=trace,
            scorer=self._ref(),
            fitness=measured.fitness,
            alignments=alignments,
            spans=spans,
            attributions=tuple(measured.attributions),
            heats=tuple(measured.heats),
            supports=tuple(finding.support for finding in findings),
            verdicts=tuple(verdicts),
            coalitions=measured.coalitions,
            corpus_looks=tuple(looks),
            notes=tuple(dict.fromkeys(notes)),
            cost=self._cost(before, time.perf_counter() - started),
            premises=premises_of(trace, spans, read, findings, decisions, measured.influences),
            program=__version__,
            thresholds_digest=self.thresholds.digest,
        )

    def _read_chunks(
        self,
        spans: Sequence[Span],
        findings: Sequence[Finding],
        alignments: Sequence[Alignment] | None,
        measured: _Measured,
    ) -> tuple[Finding, ...]:
        """Where no rule tells what a chunk says, the model has read it: conflicts, contradictions, and what
        was dropped. ``alignments`` None: the prompt is not known, and all chunks count as seen."""
        whole = (AlignmentState.EXACT, AlignmentState.NORMALISED)
        lost = {alignment.position for alignment in alignments or () if alignment.state not in whole}
        seen = [chunk for chunk in self.trace.chunks if chunk.position not in lost][:MAX_READ]
        hidden = [chunk for chunk in self.trace.chunks if chunk.position in lost][:MAX_READ]
        said = [self.trace.answer[span.start : span.end] for span in spans]
        settled = [
            with_conflicts(finding, measured.rewritten.get(span.index), words_of, self.trace.chunks)
            for span, finding, words_of in zip(spans, findings, said, strict=True)
        ]
        asked = 0
        for at, (span, finding) in enumerate(zip(spans, settled, strict=True)):
            read = self._reader(span, measured)
            is_open = finding.support.state in (SupportState.ABSENT, SupportState.CONTRADICTED) or (
                finding.support.state is SupportState.UNCLEAR and bool(finding.borrowed_from)
            )
            if read is None or finding.dropped or not is_open:
                continue
            if (asked := asked + 1) > MAX_READ_SPANS:
                measured.notes.append(
                    f"The model read chunks again for {MAX_READ_SPANS} unsupported spans, not for the others."
                )
                break
            self._look("reading", at / len(spans))
            try:
                settled[at] = with_reading(finding, self.trace, span, seen, hidden, read)
            except ModelError as error:
                measured.notes.append(f"Chunks that may say it in other words were not read: {error}")
                break
        return tuple(settled)

    def _reader(self, span: Span, measured: _Measured) -> Reader | None:
        """Has the model read texts of the corpus; None where no scorer can explain the span."""
        layout, scorer = measured.layout, self.scorer
        if scorer is None or layout is None or span.index not in measured.influences:
            return None
        from ragblame.attribution.methods.rewriting import with_text

        return lambda texts: with_text(scorer, layout, span, texts)

    def _ref(self) -> ScorerRef | None:
        return None if self.scorer is None else self.scorer.ref

    def _cost(self, before: Cost, seconds: float) -> Cost:
        if self.scorer is None:
            return Cost(seconds=seconds)
        from ragblame.attribution.scorer import spent_since

        return replace(spent_since(self.scorer, before), seconds=seconds)

    def _look(self, step: str, part: float) -> None:
        """Report progress; stop here when asked to."""
        if self.should_abort():
            raise RagblameError(f"stopped on request before the step {step!r}; explain the trace again")
        self.progress(step, part)

    def _measure(
        self, alignments: Sequence[Alignment], spans: Sequence[Span], findings: Sequence[Finding]
    ) -> _Measured:
        """Everything that needs the scorer; what it cannot do becomes a note."""
        measured = _Measured()
        if self.scorer is None:
            measured.notes.append("No scorer was used: the verdicts rest on the text alone.")
            return measured
        from ragblame.attribution.fitness import check_fitness
        from ragblame.attribution.layout import build_layout

        try:
            layout = build_layout(self.trace, alignments, self.scorer.tokenizer)
            measured.notes.extend(layout.notes)
            self._look("fitness", 0.0)
            row = self.scorer.score(layout, [layout.full_mask])[0]
            measured.fitness = check_fitness(layout, row)
        except (AlignmentError, ModelError) as error:
            measured.fitness = Fitness(is_fit=False, reason=f"The scorer cannot read this answer: {error}.")
            measured.notes.append("The scorer was not used, so the verdicts rest on the text alone.")
            return measured
        if not measured.fitness.is_fit:
            measured.notes.append(
                "The scorer cannot explain this answer, so nothing was attributed and the verdicts rest on "
                "the text alone."
            )
            return measured
        measured.layout = layout
        self._share(layout, spans, measured)
        self._ask_counterfactual(layout, spans, findings, measured)
        self._rewrite(layout, spans, findings, measured)
        self._heat(layout, spans, findings, measured)
        return measured

    def _share(self, layout: "Layout", spans: Sequence[Span], measured: _Measured) -> None:
        """Shapley, exact or with many chunks sampled, and from its table the influence on each span."""
        from ragblame.attribution.methods.sampled_shapley import SampledShapley, sampled_shapley
        from ragblame.attribution.methods.shapley import ShapleyResult, shapley

        assert self.scorer is not None
        furthest = 0.0

        def look(part: float) -> None:
            nonlocal furthest  # each round of scoring begins anew at 0: progress must not
            furthest = max(furthest, part)
            self._look("shares", furthest)

        result: ShapleyResult | SampledShapley
        try:
            with self.scorer.watched(look):
                if len(layout.players) <= self.max_exact_chunks:
                    result = shapley(self.scorer, layout, spans, max_chunks=self.max_exact_chunks)
                else:
                    result = sampled_shapley(
                        self.scorer,
                        layout,
                        spans,
                        budget=self.sampled_coalitions,
                        precision_nats=self.sampled_precision,
                    )
                ends = _ends(layout, result.coalitions)
                all_row, none_row = ends or self.scorer.score(layout, [layout.full_mask, 0]).tolist()
        except (InputError, ModelError) as error:
            measured.notes.append(f"No shares were computed, so the verdicts rest on the text alone: {error}")
            return
        measured.notes.extend(result.notes)
        measured.coalitions = result.coalitions
        for span, attribution in zip(spans, result.attributions, strict=True):
            tokens = content_tokens(layout, span)
            if not tokens:
                continue  # a later step wrote it, not the model: nothing was measured
            measured.attributions.append(attribution)
            measured.influences[span.index] = Influence(
                v_all=sum(all_row[token] for token in tokens),
                v_none=sum(none_row[token] for token in tokens),
                tokens=len(tokens),
                noise=attribution.noise_floor,
                shares=attribution.shares,
            )
        for index, first in repetitions(layout.answer, spans).items():
            if index in measured.influences and first in measured.influences:
                measured.influences[index] = replace(measured.influences[first], is_carried=True)

    def _ask_counterfactual(
        self,
        layout: "Layout",
        spans: Sequence[Span],
        findings: Sequence[Finding],
        measured: _Measured,
    ) -> None:
        """Where memory alone says the same, whether the model would follow the chunk if it said otherwise."""
        from ragblame.attribution.methods.counterfactual import Probe, follow

        probes: list[Probe] = []
        for span, finding in zip(spans, findings, strict=True):
            influence, support = measured.influences.get(span.index), finding.support
            if influence is None or not asks_counterfactual(support, influence, self.thresholds):
                continue
            assert support.position is not None
            positions = (support.position, *support.other_positions)
            probes.append(Probe(span=span, positions=positions))
        if not probes:
            return
        assert self.scorer is not None
        self._look("counterfactual", 0.0)
        try:
            preferred = follow(self.scorer, layout, probes)
        except ModelError as error:
            measured.notes.append(f"No counterfactual was asked: {error}")
            return
        for probe, nats in zip(probes, preferred, strict=True):
            index = probe.span.index
            measured.influences[index] = replace(measured.influences[index], follow=nats)

    def _rewrite(
        self,
        layout: "Layout",
        spans: Sequence[Span],
        findings: Sequence[Finding],
        measured: _Measured,
    ) -> None:
        """Where another chunk may say otherwise: what it writes without the supporting ones."""
        from ragblame.attribution.methods.rewriting import without

        assert self.scorer is not None
        for span, finding in zip(spans, findings, strict=True):
            support = finding.support
            if not finding.may_conflict or support.position is None or span.index not in measured.influences:
                continue
            self._look("rewriting", 0.0)
            try:
                measured.rewritten[span.index] = without(
                    self.scorer, layout, span, (support.position, *support.other_positions)
                )
            except ModelError as error:
                measured.notes.append(f"Chunks that may disagree were not compared: {error}")
                return

    def _heat(
        self,
        layout: "Layout",
        spans: Sequence[Span],
        findings: Sequence[Finding],
        measured: _Measured,
    ) -> None:
        """Token heat by input x gradient, and attention shares; doubtful spans first where there are many."""
        from ragblame.attribution.methods.rollout import rollout
        from ragblame.attribution.methods.saliency import saliency

        if not layout.players:
            return
        doubtful = {f.support.span for f in findings if f.support.state is not SupportState.ENTAILED}
        ordered = sorted(spans, key=lambda span: (span.index not in doubtful, span.index))
        chosen = sorted(ordered[:MAX_HEAT_SPANS], key=lambda span: span.index)
        if len(chosen) < len(spans):
            measured.notes.append(
                f"Token heat and attention shares were computed for {len(chosen)} of {len(spans)} spans."
            )
        scorer = self.scorer
        assert scorer is not None
        steps: list[tuple[str, Callable[[Sequence[Span]], HeatResult], bool]] = [
            ("saliency", lambda part: saliency(scorer, layout, part, Method.INPUT_X_GRADIENT), True),
            ("rollout", lambda part: rollout(scorer, layout, part), False),
        ]
        for name, method, keeps_heat in steps:
            try:
                for at in range(0, len(chosen), SPANS_AT_ONCE):
                    self._look(name, at / len(chosen))
                    result = method(chosen[at : at + SPANS_AT_ONCE])
                    measured.attributions.extend(result.attributions)
                    measured.notes.extend(result.notes)
                    if keeps_heat:
                        measured.heats.extend(result.heats)
            except ModelError as error:
                measured.notes.append(f"No {name}: {error}")


def _ends(layout: "Layout", table: CoalitionValues | None) -> tuple[Sequence[float], Sequence[float]] | None:
    """Log-probabilities per answer token with all chunks and with none; None where no table was kept."""
    if table is None:
        return None
    return table.log_probs[table.masks.index(layout.full_mask)], table.log_probs[table.masks.index(0)]


def content_tokens(layout: "Layout", span: Span) -> tuple[int, ...]:
    """Answer tokens of a span that carry its claim: those of its content words, or all when it has none."""
    tokens = layout.span_tokens(span)
    kept = [
        (span.start + word.start, span.start + word.end)
        for word in words(layout.answer[span.start : span.end])
        if word.is_content or word.is_negation
    ]
    telling = tuple(
        token
        for token in tokens
        if any(layout.answer_starts[token] < end and layout.answer_ends[token] > start for start, end in kept)
    )
    return telling or tokens
