"""Whether a sentence denies what a span says, or repeats it with the words around.

A "not" right before a value counts; one merely nearby, or inside a stretch that the answer copied, does not.
"""

from collections.abc import Sequence
from typing import Final

from ragblame.attribution.verdicts.claims import NEIGHBOURS, Claim, copied_run
from ragblame.attribution.verdicts.evidence import Sentence
from ragblame.attribution.verdicts.normalise import Word, is_negated
from ragblame.attribution.verdicts.same_value import is_same_value

QUOTED_WORDS: Final = 6  # in a row that answer and sentence share around a span
QUOTED_CONTENT: Final = 3  # of them telling words outside the span
# "Not only 5", "no more than 5": a negation before these says nothing against the value.
_LIMITS: Final = frozenset(
    ("only", "just", "until", "before", "after", "than", "more", "less", "fewer", "later", "earlier", "least")
)


def is_denied(claim: Claim, sentence: Sentence) -> bool:
    """Whether a sentence says "not" right before the claim's value, wherever the value stands in it."""
    if is_negated(claim.items) or claim.is_near_negation:
        return False
    if claim.quantities:
        wanted = claim.quantities[0]
        places = [q for q in sentence.quantities if is_same_value(wanted, q, tolerance=claim.tolerance)]
        at = [
            next((i for i, word in enumerate(sentence.items) if word.end > place.start), 0)
            for place in places
        ]
    else:
        at = [i for i, word in enumerate(sentence.items) if word.stem in claim.stems]
        if len(at) > 1 and at[-1] - at[0] <= len(claim.items):
            at = [next((i for i in at if _is_behind_not(sentence.items, i)), at[0])]  # "is no longer closed"
    return bool(at) and all(_is_behind_not(sentence.items, index) for index in at)


def _is_behind_not(items: Sequence[Word], at: int) -> bool:
    return (
        any(word.is_negation for word in items[max(0, at - 2) : at]) and items[at - 1].folded not in _LIMITS
    )


def is_quoted(claim: Claim, sentence: Sentence) -> bool:
    """Whether the answer repeats a long stretch of the sentence around the span: both are about the same."""
    low, high = copied_run(claim, sentence)
    further = [word for word in sentence.items[low:high] if word.is_content and word.stem not in claim.stems]
    return high - low >= QUOTED_WORDS and len(further) >= QUOTED_CONTENT


def differs(claim: Claim, wanted: frozenset[str], sentence: Sentence) -> bool:
    """Whether one side denies what the other says; a negation merely nearby is no difference."""
    at = [index for index, word in enumerate(sentence.items) if word.stem in wanted]
    if not at:
        return False
    low, high = at[0], at[-1] + 1
    first, last = copied_run(claim, sentence)
    if last - first >= QUOTED_WORDS:  # negations inside are the answer's, too; others are no matter
        is_denied = first > 0 and sentence.items[first - 1].is_negation
        return is_denied and not claim.is_near_negation and len(claim.before) < NEIGHBOURS
    if is_negated(claim.items):
        wide = sentence.items[max(0, low - NEIGHBOURS) : high + NEIGHBOURS]
        return not any(word.is_negation for word in wide)
    return is_negated(sentence.items[max(0, low - 2) : high]) and not claim.is_near_negation
