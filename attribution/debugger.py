"""The only file that knows the order of steps: from a trace to an explanation.

align, spans, support, what needs the scorer (``measuring.py``: layout, fitness, v(S) with its shares, the
counterfactual where memory agrees, saliency, rollout), verdict and cause, and for flagged spans a look into
the corpus. What a step cannot do is a note, never a silent replacement: without a usable scorer the verdicts
rest on the text alone and say so.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypedDict, Unpack

from ragblame import __version__
from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.alignment_notes import alignment_notes
from ragblame.attribution.inputs import ChunkInput, PromptInput, trace_of
from ragblame.attribution.measuring import Measured, Measuring
from ragblame.attribution.spans import segment
from ragblame.attribution.verdicts.causes import judge
from ragblame.attribution.verdicts.corpus_asking import Asking, ask_corpus
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.fusion import with_probabilities
from ragblame.attribution.verdicts.learned import SupportReader
from ragblame.attribution.verdicts.miscited import with_citations
from ragblame.attribution.verdicts.other_words import Reader, with_conflicts, with_reading
from ragblame.attribution.verdicts.premises import by_probability, premises_of
from ragblame.attribution.verdicts.prompt_lines import with_prompt_lines
from ragblame.attribution.verdicts.reading import settle
from ragblame.attribution.verdicts.support import examine
from ragblame.attribution.verdicts.table import Decision, decide
from ragblame.attribution.verdicts.thresholds import DEFAULT, Thresholds
from ragblame.corpus import CorpusProbe
from ragblame.errors import InputError, MissingExtraError, ModelError, RagblameError
from ragblame.records import (
    Alignment,
    AlignmentState,
    Cost,
    Explanation,
    ScorerRef,
    Span,
    SupportState,
    Trace,
    Verdict,
)

if TYPE_CHECKING:
    from ragblame.attribution.scorer import TransformersScorer

MAX_READ = 10  # chunks in the prompt, and as many outside it, that the model may read for one span
MAX_READ_SPANS = 16
MAX_CORPUS_SPANS = 8  # spans of an answer that the corpus is asked about: each may take seconds


Progress = Callable[[str, float], None]  # name of the step, part of it done in [0, 1]


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
    wrote: Collection[str]


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
        wrote: Collection[str] = (),
    ) -> None:
        """``max_exact_chunks``: with more in the prompt, shares are sampled from at most
        ``sampled_coalitions`` coalitions, or until each standard error is ``sampled_precision`` nats.
        ``probe``: is asked why the evidence of flagged spans was not in the prompt, for the worst
        ``max_corpus_spans`` of an answer; with ``checks_freshness`` also whether a newer row states another
        value than a supported span. None: causes do not look into the corpus. ``support_reader``: reads
        the text beside the rules; None: they decide alone. ``wrote``: names of models, as traces tell
        them, that the scorer is; of other answers it is a stand-in, unless it was loaded as their own."""
        self.scorer = scorer
        self.probe = probe
        self.support_reader = support_reader
        self.wrote = frozenset(wrote)
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

        ``model``: None for the shipped small model. ``is_own_model``: it wrote all answers. ``threads``: of
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
        self.thresholds = debugger.thresholds
        self.support_reader = debugger.support_reader
        self.wrote = debugger.wrote
        self.asking = Asking(
            probe=debugger.probe,
            max_spans=debugger.max_corpus_spans,
            checks_freshness=debugger.checks_freshness,
        )
        self.trace = trace
        self.should_abort = should_abort
        self.progress = progress
        self.measuring: Measuring | None = None
        if self.scorer is not None:
            self.measuring = Measuring(
                scorer=self.scorer,
                trace=trace,
                thresholds=debugger.thresholds,
                max_exact_chunks=debugger.max_exact_chunks,
                sampled_coalitions=debugger.sampled_coalitions,
                sampled_precision=debugger.sampled_precision,
                look=self._look,
            )

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
        if self.measuring is None:
            measured = Measured(notes=["No scorer was used: the verdicts rest on the text alone."])
        else:
            measured = self.measuring.measure(alignments, spans, findings)
        findings = self._read_chunks(spans, findings, alignments if has_prompt else None, measured)
        self._look("verdict", 0.0)
        if has_prompt:
            findings = with_citations(trace, spans, findings, alignments)
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
        measured: Measured,
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

    def _reader(self, span: Span, measured: Measured) -> Reader | None:
        """Has the model read texts of the corpus; None where no scorer can explain the span."""
        layout, scorer = measured.layout, self.scorer
        if scorer is None or layout is None or span.index not in measured.influences:
            return None
        from ragblame.attribution.methods.rewriting import with_text

        return lambda texts: with_text(scorer, layout, span, texts)

    def _ref(self) -> ScorerRef | None:
        if self.scorer is None:
            return None
        ref = self.scorer.ref
        return replace(ref, is_own_model=ref.is_own_model or self.trace.model in self.wrote)

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
