"""What the rules found about a span: the support record, and what the causes need beyond it.

It also says how sure a finding is, given the sentences it rests on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from ragblame.attribution.verdicts.claims import Claim
from ragblame.attribution.verdicts.evidence import Sentence
from ragblame.attribution.verdicts.subjects import Match
from ragblame.records import PromptLine, Support, SupportState

SAME_WORDS: Final = 0.75  # with so many of them a value stands in its own sentence, whoever else is named
SAME_ATTRIBUTE: Final = 0.50  # share of an attribute's name that makes another value a contradiction


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A support record with what the causes need beyond it."""

    support: Support
    conflicts: tuple[tuple[int, str], ...] = ()  # further chunk in the prompt, the other value it states
    # further chunk with another value of the kind for the subject: in other words, or of another attribute
    may_conflict: tuple[int, ...] = ()
    borrowed_from: tuple[int, ...] = ()  # chunks where the value stands with another subject only
    dropped: tuple[int, ...] = ()  # chunks outside the prompt that say it, or state what it should be
    # entailed, contradicted: of the same subject and attribute, not merely of words that would fit
    is_sure: bool = True
    is_about: bool = False  # ``examine_apart``: a sentence is about the span's subject, whatever it says
    copied_from: tuple[PromptLine, ...] = ()  # lines of the prompt outside the chunks that say it
    told_by: tuple[PromptLine, ...] = ()  # lines that ask for an answer from memory
    miscited: tuple[int, ...] = ()  # chunks that the answer names as the source, and that do not say it
    cites_none: tuple[int, ...] = ()  # numbers that the answer names as the source, and that no chunk has


@dataclass(frozen=True, slots=True)
class Hit:
    """A sentence that says a claim, or holds its value."""

    sentence: Sentence
    match: Match
    score: float  # share of the claim's surroundings, or of a clause, that it says, [0, 1]


@dataclass(frozen=True, slots=True)
class Against:
    """A sentence about the subject that states another value."""

    sentence: Sentence
    stated: str
    stems: frozenset[str]  # of what is stated
    attribute: float  # share of the attribute's name that it says, [0, 1]


def entailed_by(claim: Claim, hits: Sequence[Hit], rule: str) -> Finding:
    """Entailed by the best of several sentences; other chunks that say it too are listed."""
    best = max(hits, key=lambda hit: (hit.match is Match.SAME, hit.score, -hit.sentence.index))
    others = sorted({hit.sentence.position for hit in hits} - {best.sentence.position})
    support = support_of(claim, SupportState.ENTAILED, rule, best.sentence)
    return Finding(support=replace(support, other_positions=tuple(others)), is_sure=_is_sure(claim, best))


def is_parallel(claim: Claim, said: Sentence, other: Against) -> bool:
    """Whether two sentences are one and the same but for the value."""
    return said.reach - claim.stems == other.sentence.reach - other.stems


def _is_sure(claim: Claim, hit: Hit) -> bool:
    """Whether a sentence is about the subject, and for a number met by chance about the attribute too."""
    if hit.match is Match.SAME and not claim.is_common:
        return True
    is_near = hit.match is not Match.UNKNOWN or claim.subject is None
    return hit.score >= (SAME_ATTRIBUTE if is_near else SAME_WORDS)


def support_of(
    claim: Claim, state: SupportState, rule: str, sentence: Sentence, stated: str | None = None
) -> Support:
    """The support record of a span that rests on a sentence; ``stated``: what it says instead."""
    return Support(
        span=claim.span.index,
        state=state,
        rule=rule,
        position=sentence.position,
        evidence_start=sentence.start,
        evidence_end=sentence.end,
        stated=stated,
    )


def without_evidence(claim: Claim, state: SupportState, rule: str) -> Finding:
    """What a rule says of a span without quoting a sentence."""
    return Finding(support=Support(span=claim.span.index, state=state, rule=rule))
