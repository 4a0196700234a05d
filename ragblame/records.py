"""The vocabulary everybody shares: frozen records of plain Python values that cross every floor of the house.

No tensor, database row or widget appears here, so a record made in a callback can be stored, queued,
attributed on another machine and drawn in a browser without any of those knowing each other.
Offsets are Unicode code points, half open ``[start, end)``; log-probabilities are natural, in nats.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from importlib import import_module
from typing import Any
from uuid import UUID

from ragblame.trace_records import MASK, Chunk, Json, Message, Trace, TraceStatus

__all__ = [
    "MASK",
    "Alignment",
    "AlignmentState",
    "Attribution",
    "Basis",
    "Cause",
    "Chunk",
    "CoalitionValues",
    "CorpusEvidence",
    "CorpusLook",
    "CorpusSearch",
    "Cost",
    "Explanation",
    "Fitness",
    "Json",
    "Message",
    "Method",
    "Premises",
    "PromptLine",
    "Review",
    "ScorerRef",
    "Span",
    "SpanKind",
    "Support",
    "SupportState",
    "TokenHeat",
    "Trace",
    "TraceStatus",
    "Verdict",
    "VerdictKind",
]


class AlignmentState(StrEnum):
    """How much of a chunk's text was found in the prompt that was sent."""

    EXACT = "exact"
    NORMALISED = "normalised"  # equal up to white space
    PARTIAL = "partial"  # a part of at least the configured length stands there
    MISSING = "missing"


class SpanKind(StrEnum):
    """What makes a piece of the answer checkable."""

    NUMBER = "number"
    DATE = "date"
    NAME = "name"
    QUOTE = "quote"
    NEGATION = "negation"
    CLAUSE = "clause"  # what remains of a sentence


class SupportState(StrEnum):
    """Does some chunk say it?"""

    ENTAILED = "entailed"
    CONTRADICTED = "contradicted"
    ABSENT = "absent"
    UNCLEAR = "unclear"


class VerdictKind(StrEnum):
    """The verdict table: used or not, times supported or not; and the honest fifth."""

    GROUNDED = "grounded"
    DISTORTED = "distorted"
    KNOWN_ALREADY = "known already"
    FABRICATED = "fabricated"
    UNDETERMINED = "undetermined"


class Cause(StrEnum):
    """Why a flagged span went wrong. Codes of TRIAGE's taxonomy are in the comments; values are stored."""

    CAPTURE_INCOMPLETE = "capture incomplete"  # U
    STALE_SOURCE = "stale source"  # S: a newer row of the corpus states another value
    DROPPED_AFTER_RETRIEVAL = "dropped after retrieval"  # C
    CONFLICTING_CHUNKS = "conflicting chunks"  # F
    DISTORTION = "distortion"  # D: a used chunk says otherwise
    BORROWED = "borrowed from another subject"  # D, entity swap: the value stands with another subject
    MEMORY_OVERRIDE = "memory over documents"  # I
    PROMPT = "prompt at fault"  # P: the prompt itself holds the value, or asks for an answer from memory
    WRONG_SOURCE = "wrong source"  # supported, yet by a chunk that was not used
    QUERY_REWRITING = "query rewriting"  # Q: the question finds it within k, the rewritten query does not
    RANKED_TOO_LOW = "ranked too low"  # B1: k < exact rank <= 50
    INDEX_MISS = "missed by the index"  # B2: exact rank <= k, and the index did not return it
    FILTERED_OUT = "filtered out"  # B3: it does not pass the retriever's filter
    SEMANTIC_GAP = "semantic gap"  # B4: found by words or by the claim, not by the query's vector
    NOT_THERE_YET = "not there yet"  # B5: the row is newer than the answer
    CUT_APART = "cut between chunks"  # B6: two neighbours say it together, neither alone
    NO_EVIDENCE_IN_CORPUS = "no evidence in the corpus"  # A
    NO_EVIDENCE_IN_PROMPT = "no evidence in the prompt"  # A or B: the corpus was not asked, or not to the end
    UNDETERMINED = "undetermined"  # U: confidence intervals straddle the thresholds


class Basis(StrEnum):
    """What a verdict rests on; every screen shows it."""

    ATTRIBUTION_AND_SUPPORT = "attribution and support"
    SUPPORT_ONLY = "support only"  # the scorer cannot explain the recorded answer, or there is none


class Method(StrEnum):
    """Attribution methods; the value is stored."""

    SHAPLEY = "shapley"
    GRADIENT_NORM = "gradient norm"
    INPUT_X_GRADIENT = "input x gradient"
    INTEGRATED_GRADIENTS = "integrated gradients"
    CONTRASTIVE = "contrastive gradient"  # input x gradient against what the model says without chunks
    ROLLOUT = "rollout"  # Abnar & Zuidema 2020, as published
    ROLLOUT_CORRECTED = "corrected rollout"  # residual weight, divided by a content-free reference
    LIME = "LIME"  # Ribeiro et al. 2016: a weighted linear surrogate; its shares sum to no total


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """Where a chunk's text stands in the prompt."""

    position: int  # the chunk
    state: AlignmentState
    message: int | None = None  # index into Trace.prompt
    start: int | None = None  # code points in that message's text
    end: int | None = None
    found: tuple[int, int] | None = None  # the part [start, end) of the chunk's text that stands there
    absent: tuple[tuple[int, int], ...] = ()  # parts of the chunk's text that do not, in order
    is_ambiguous: bool = False  # the text also stands where no chunk was placed; order decided


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A checkable piece of the answer."""

    index: int  # 0-based, by start
    start: int
    end: int
    kind: SpanKind
    sentence_start: int  # the sentence around it, for display and for the subject of a value
    sentence_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a computation took; budget means scored coalitions everywhere."""

    scored_coalitions: int = 0
    forwards: int = 0
    backwards: int = 0
    tokens: int = 0  # tokens pushed through the model's body
    seconds: float = 0.0  # wall clock


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerRef:
    """Which model put numbers on v(S), and whether it is the one that wrote the answer."""

    name: str
    revision: str  # digest of its weights or the hub revision
    is_own_model: bool  # False: a stand-in, and every screen says so


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitness:
    """Can this scorer explain the recorded answer at all?"""

    is_fit: bool
    # mean log-probability per answer token with all chunks present (<= 0); None: the scorer cannot read it
    answer_nats: float | None = None
    unigram_nats: float | None = None  # the same under a unigram guess over the scorer's own tokens
    reason: str  # one sentence for the screen


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """One method's numbers for one span."""

    span: int
    method: Method
    shares: tuple[float, ...]  # one per chunk, by position; nats for shapley, else own unit
    standard_errors: tuple[float, ...] | None = None  # of sampled shares, same unit; None: not sampled
    v_all: float | None = None  # nats, span tokens given all chunks
    v_none: float | None = None  # nats, span tokens given no chunk
    reliance: float | None = None  # v_all - v_none, nats; may be negative
    noise_floor: float = 0.0  # one sigma, unit of the shares
    completeness_gap: float | None = None  # |sum of shares - total|, for methods that promise completeness
    settings_hash: str = ""
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHeat:
    """Signed heat of the tokens of one chunk for one span."""

    span: int
    position: int  # the chunk
    method: Method
    starts: tuple[int, ...]  # code points in the chunk's text
    ends: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What the chunks say about a span, with the quoted evidence."""

    span: int
    state: SupportState
    rule: str  # which rule fired, e.g. "number with subject"
    position: int | None = None  # chunk of the best sentence
    evidence_start: int | None = None  # code points in that chunk's text
    evidence_end: int | None = None
    stated: str | None = None  # what the chunk says instead, when contradicted
    other_positions: tuple[int, ...] = ()  # further chunks that say the same
    model: str | None = None  # name@revision of the learned model that read it; None: only rules did
    probability: float | None = None  # that model's raw probability of being unsupported, [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLine:
    """A sentence of the prompt outside the chunks that made a span what it is."""

    message: int  # index into Trace.prompt
    start: int  # code points in that message's text
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusEvidence:
    """A row of the corpus that says what a span should be, and why it was not in the prompt."""

    table: str  # with its schema
    row_id: str
    state: SupportState  # entailed: it says the span; contradicted: it states another value in its place
    rule: str  # of the support check
    cause: Cause | None  # why this row was not in the prompt; None: not known
    start: int  # the sentence, code points in the row's text as it was when asked
    end: int
    quote: str  # that sentence; empty where the retriever's filter keeps the row from who asked
    stated: str | None = None  # the other value, as the row states it
    rank: int | None = None  # 1-based, for the retriever's query among the rows of that time; None: not known
    is_exact: bool = False  # the rank was counted over the whole table; else say "approximate"
    question_rank: int | None = None  # for the user's question, where the query is a rewritten one
    found_by: tuple[str, ...] = ()  # the searches that found it, strongest first
    passes_filter: bool | None = None  # None: no filter was known
    is_newer: bool | None = None  # made after the answer; None: not known
    created_at: datetime | None = None
    joined_with: str | None = None  # row id of the neighbour without which it does not say it


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusSearch:
    """One query that was put to the corpus."""

    text: str  # what it was asked with, e.g. "claim"
    way: str  # how, e.g. "nearest vectors"
    is_filtered: bool
    is_exact: bool
    is_complete: bool
    found: int  # rows
    seconds: float
    note: str = ""  # why it is not exact or not complete


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusLook:
    """What the corpus was asked about one span: shown beside the cause, so that "nothing" can be checked."""

    span: int
    table: str  # with its schema
    rows: int | None  # of the table, as PostgreSQL estimates
    k: int  # rows the retriever asked for
    is_k_known: bool  # False: k is the number of rows that were retrieved
    is_filtered: bool  # the retriever's filter was known
    seconds: float  # in PostgreSQL
    searches: tuple[CorpusSearch, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What a verdict follows from beside its support: with both it is decided again without any model.

    Numbers are sums over the span's content tokens; shares stand in the Shapley ``Attribution`` of the span,
    or of ``measured_at`` where the answer only repeats an earlier value.
    """

    span: int
    read_state: SupportState  # what the text alone said, before attribution or a model settled it
    read_rule: str  # the rule that said it
    v_all: float | None = None  # nats, all chunks in the prompt; None: no scorer measured the span
    v_none: float | None = None  # nats, no chunk in the prompt
    tokens: int = 0  # content tokens behind these sums
    noise: float = 0.0  # one sigma of v_all, nats
    measured_at: int | None = None  # the span of the first mention, whose numbers these are; None: its own
    follow: float | None = None  # nats by which the counterfactual follows the chunks; None: not asked
    conflicts: tuple[tuple[int, str], ...] = ()  # further chunk in the prompt, the other value it states
    borrowed_from: tuple[int, ...] = ()  # chunks where the value stands with another subject only
    dropped: tuple[int, ...] = ()  # chunks outside the prompt that say it, or state what it should be
    is_sure: bool = True  # said or denied of the same subject and attribute, not merely of fitting words
    copied_from: tuple[PromptLine, ...] = ()  # lines of the prompt outside the chunks that say it
    told_by: tuple[PromptLine, ...] = ()  # lines that ask for an answer from memory
    miscited: tuple[int, ...] = ()  # chunks that the answer names as the source, and that do not say it
    cites_none: tuple[int, ...] = ()  # numbers that the answer names as the source, and that no chunk has
    is_used: bool | None = None  # the row of the verdict table; None: not measured, or too close to tau
    used: tuple[int, ...] = ()  # chunks the model relied on, largest share first


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The decision about one span, in words an on-call engineer can act on."""

    span: int
    verdict: VerdictKind
    cause: Cause | None  # None when nothing went wrong
    basis: Basis
    confidence: float | None  # calibrated P(unsupported), [0, 1]; None: uncalibrated
    severity: float  # [0, 1], orders the queue; 0 for spans that are not flagged
    explanation: str  # one plain sentence
    fix: str | None = None  # the usual fix for the cause
    evidence: tuple[int, ...] = ()  # chunk positions
    other_causes: tuple[Cause, ...] = ()
    reliance_measurable: bool = True  # False when the model was already sure without any chunk
    thresholds_version: str = ""
    corpus_evidence: tuple[CorpusEvidence, ...] = ()  # closest to being retrieved first
    prompt_evidence: tuple[PromptLine, ...] = ()  # lines of the prompt that are at fault

    @property
    def is_flagged(self) -> bool:
        """Whether a person should look at the span."""
        return self.verdict in (VerdictKind.DISTORTED, VerdictKind.FABRICATED) or (
            self.cause is not None and self.verdict is not VerdictKind.UNDETERMINED
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalitionValues:
    """The whole table v(S) per answer token: answers any "without these chunks" question with no model."""

    positions: tuple[int, ...]  # the players: chunk positions; bit i of a mask is positions[i]
    masks: tuple[int, ...]  # one per coalition
    token_starts: tuple[int, ...]  # code points in the answer
    token_ends: tuple[int, ...]
    log_probs: tuple[tuple[float, ...], ...]  # [coalition][token], nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Everything known about one trace: what the worker stores and the notebook shows."""

    trace: Trace
    scorer: ScorerRef | None  # None: no model was used
    fitness: Fitness | None
    alignments: tuple[Alignment, ...]
    spans: tuple[Span, ...]
    attributions: tuple[Attribution, ...]
    heats: tuple[TokenHeat, ...]
    supports: tuple[Support, ...]
    verdicts: tuple[Verdict, ...]
    coalitions: CoalitionValues | None
    corpus_looks: tuple[CorpusLook, ...] = ()  # by span; empty where the corpus was not asked
    notes: tuple[str, ...] = ()  # what could not be computed and why, one sentence each
    cost: Cost = field(default_factory=Cost)
    premises: tuple[Premises, ...] = ()  # one per verdict; empty: made by a version that kept none
    program: str = ""  # version of ragblame that decided; empty: not kept
    thresholds_digest: str = ""  # of the thresholds' values then, so that a later edit is noticed

    def _repr_html_(self) -> str:
        """How a notebook shows it: self-contained HTML, every text escaped."""
        from ragblame.notebook import render

        return render(self)

    def to_shap(self, method: Method = Method.SHAPLEY) -> Any:
        """One method's shares as a ``shap.Explanation`` [span, chunk], which shap's own plots draw.

        Loads numpy and shap on the first call. Raises ``InputError`` when the method was not computed and
        ``MissingExtraError`` when shap is not installed.
        """
        # By name, as the package's public face does: records are the ground floor and know no room above.
        return import_module("ragblame.attribution.interchange").to_shap(self, method)


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """What a person decided about a span."""

    id: UUID
    trace_id: UUID
    span: int
    reviewer: str
    verdict: VerdictKind
    cause: Cause | None = None
    note: str = ""
    created_at: datetime
