"""What if the retriever had not returned these chunks? Read off the stored coalitions, with no model.

The table holds v(S) of every answer token, scored on the prompt without the other chunks, so the answer is
exact: the number that a model would give on that prompt, not an estimate from shares. Shares add up to less
or more than this as soon as chunks repeat or need each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, fsum

from ragblame.errors import InputError
from ragblame.records import CoalitionValues, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class WhatIf:
    """One span with some chunks gone."""

    span: int
    without: tuple[int, ...]  # chunk positions, ascending
    v_all: float  # nats, <= 0: log-probability of the span's tokens with all chunks in the prompt
    v_without: float  # nats, <= 0: the same without these chunks

    @property
    def change(self) -> float:
        """``v_without - v_all`` in nats; negative: the span needs these chunks."""
        return self.v_without - self.v_all

    @property
    def probability_all(self) -> float:
        """Probability of the span's tokens with all chunks, [0, 1]."""
        return exp(self.v_all)

    @property
    def probability_without(self) -> float:
        """Probability of the span's tokens without these chunks, [0, 1]."""
        return exp(self.v_without)

    @property
    def probability_change(self) -> float:
        """``probability_without - probability_all``, [-1, 1]."""
        return self.probability_without - self.probability_all


def what_if(values: CoalitionValues, span: Span, without: Sequence[int]) -> WhatIf:
    """How likely the span's tokens are when these chunk positions are not in the prompt.

    None named: nothing changes. Raises ``InputError`` naming the chunks (counted from 1, as on the screen)
    when one of them does not stand in the prompt or the coalition was not scored, and when no answer token
    lies in the span.
    """
    gone = tuple(sorted(set(without)))
    full = (1 << len(values.positions)) - 1
    return WhatIf(
        span=span.index,
        without=gone,
        v_all=span_value(values, span, full),
        v_without=span_value(values, span, full & ~_mask(values, gone)),
    )


def span_value(values: CoalitionValues, span: Span, mask: int) -> float:
    """v(S) of a span in nats; bit i of ``mask`` says that chunk ``values.positions[i]`` is in the prompt.

    Sums the tokens that overlap the span, as ``Layout.span_tokens`` does. Raises ``InputError`` as
    ``what_if`` does.
    """
    tokens = [
        index
        for index, (start, end) in enumerate(zip(values.token_starts, values.token_ends, strict=True))
        if start < span.end and end > span.start
    ]
    if not tokens:
        raise InputError(
            f"no token of the answer lies in span {span.index + 1}: attribute the trace again, its table is "
            "of another answer"
        )
    return fsum(_row(values, mask)[token] for token in tokens)


def _mask(values: CoalitionValues, positions: Sequence[int]) -> int:
    """The coalition of these chunks."""
    bits = {position: 1 << bit for bit, position in enumerate(values.positions)}
    if absent := [position for position in positions if position not in bits]:
        named = _named(absent)
        raise InputError(
            f"{named} does not stand in the prompt that was scored, so there is nothing to leave out; "
            f"name chunks among {_named(values.positions)}"
        )
    return sum(bits[position] for position in positions)


def _row(values: CoalitionValues, mask: int) -> tuple[float, ...]:
    """Log-probabilities of one coalition."""
    at = mask if mask < len(values.masks) and values.masks[mask] == mask else None  # full tables count up
    if at is None and mask in values.masks:
        at = values.masks.index(mask)
    if at is None:
        kept = [position for bit, position in enumerate(values.positions) if mask >> bit & 1]
        gone = [position for bit, position in enumerate(values.positions) if not mask >> bit & 1]
        raise InputError(
            f"the prompt without {_named(gone)} (with {_named(kept)}) is not among the {len(values.masks)} "
            "coalitions scored; leave out others, or attribute the trace again with all coalitions"
        )
    return values.log_probs[at]


def _named(positions: Sequence[int]) -> str:
    """Chunks as the screens call them, counted from 1."""
    if not positions:
        return "no chunk"
    return f"chunk {', '.join(str(position + 1) for position in sorted(positions))}"
