"""Everything that needs the scorer: what it can say about one answer. What it cannot do becomes a note."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ragblame.attribution.repetitions import repetitions
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.normalise import words
from ragblame.attribution.verdicts.table import Influence, asks_counterfactual
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.errors import AlignmentError, InputError, ModelError
from ragblame.records import (
    Alignment,
    Attribution,
    CoalitionValues,
    Fitness,
    Method,
    Span,
    SupportState,
    TokenHeat,
    Trace,
)

if TYPE_CHECKING:
    from ragblame.attribution.layout import Layout
    from ragblame.attribution.methods.heat import HeatResult
    from ragblame.attribution.scorer import TransformersScorer

MAX_HEAT_SPANS = 64  # spans that get token heat and attention shares: each one costs a backward pass
SPANS_AT_ONCE = 16  # of them, between two looks at should_abort


@dataclass(slots=True)
class Measured:
    """What the scorer could say about one answer."""

    fitness: Fitness | None = None
    attributions: list[Attribution] = field(default_factory=list)
    heats: list[TokenHeat] = field(default_factory=list)
    coalitions: CoalitionValues | None = None
    influences: dict[int, Influence] = field(default_factory=dict)  # by span; empty: text alone decides
    layout: "Layout | None" = None  # None: the scorer cannot read the answer
    rewritten: dict[int, str | None] = field(default_factory=dict)  # by span: without what supports it
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How an answer is measured; ``Debugger`` says what the bounds mean."""

    scorer: "TransformersScorer"
    trace: Trace
    thresholds: Thresholds
    max_exact_chunks: int
    sampled_coalitions: int
    sampled_precision: float
    look: Callable[[str, float], None]  # is told each step and the part of it that is done; may raise

    def measure(
        self, alignments: Sequence[Alignment], spans: Sequence[Span], findings: Sequence[Finding]
    ) -> Measured:
        """Fitness first, then shares, the counterfactual, rewriting and heat."""
        from ragblame.attribution.fitness import check_fitness
        from ragblame.attribution.layout import build_layout

        measured = Measured()
        try:
            layout = build_layout(self.trace, alignments, self.scorer.tokenizer)
            measured.notes.extend(layout.notes)
            self.look("fitness", 0.0)
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

    def _share(self, layout: "Layout", spans: Sequence[Span], measured: Measured) -> None:
        """Shapley, exact or with many chunks sampled, and from its table the influence on each span."""
        from ragblame.attribution.methods.sampled_shapley import SampledShapley, sampled_shapley
        from ragblame.attribution.methods.shapley import ShapleyResult, shapley

        furthest = 0.0

        def look(part: float) -> None:
            nonlocal furthest  # each round of scoring begins anew at 0: progress must not
            furthest = max(furthest, part)
            self.look("shares", furthest)

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
        measured: Measured,
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
        self.look("counterfactual", 0.0)
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
        measured: Measured,
    ) -> None:
        """Where another chunk may say otherwise: what it writes without the supporting ones."""
        from ragblame.attribution.methods.rewriting import without

        for span, finding in zip(spans, findings, strict=True):
            support = finding.support
            if not finding.may_conflict or support.position is None or span.index not in measured.influences:
                continue
            self.look("rewriting", 0.0)
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
        measured: Measured,
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
        steps: list[tuple[str, Callable[[Sequence[Span]], HeatResult], bool]] = [
            ("saliency", lambda part: saliency(scorer, layout, part, Method.INPUT_X_GRADIENT), True),
            ("rollout", lambda part: rollout(scorer, layout, part), False),
        ]
        for name, method, keeps_heat in steps:
            try:
                for at in range(0, len(chosen), SPANS_AT_ONCE):
                    self.look(name, at / len(chosen))
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
