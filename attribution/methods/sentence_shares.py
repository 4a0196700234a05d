"""Which sentence of a chunk did it? The chunk's Shapley share, shared out among its sentences by Owen values.

The chunk is a union of its sentences (Owen 1977, "Values of games with a priori unions"): the other chunks
come and go whole, sentences come and go only while their own chunk is the one that is judged. So the shares
of the sentences sum to the chunk's share; plain Shapley values over all sentences would not, and a chunk cut
into many sentences would gain by it.

Exact by enumeration where that is affordable, else sampled by orders that keep the sentences together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ragblame.attribution.layout import Layout
from ragblame.attribution.methods.coalitions import mask_of, members, shapley_weights, sizes
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.methods.span_values import span_values
from ragblame.attribution.scorer import Scorer, spent_since
from ragblame.attribution.sentence_regions import SentenceLayout, sentence_layout
from ragblame.errors import InputError
from ragblame.records import Attribution, Cost, Method, Span

MAX_COALITIONS = 1024  # scored for an exact answer; as many as exact Shapley over 10 chunks
PAIRS = 32  # of orders, each with its reverse, where the exact answer is too dear


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceShares:
    """One chunk's share of one span, by sentence."""

    span: int
    position: int  # the chunk
    starts: tuple[int, ...]  # code points in the chunk's text, sentences in order, white space trimmed
    ends: tuple[int, ...]
    shares: tuple[float, ...]  # nats; sum to ``chunk_share``
    standard_errors: tuple[float, ...]  # nats; 0 where the answer is exact; rough below some 30 pairs
    chunk_share: float  # nats, the chunk's Shapley share
    # nats: what the shares missed ``chunk_share`` by before they were made to sum to it; sampling error, or
    # scoring noise where the answer is exact
    correction: float
    is_exact: bool
    cost: Cost  # of all spans, which share one sweep


def owen_values(values: ArrayLike) -> NDArray[np.float64]:
    """Owen values of the members of one union, from all coalitions they need.

    ``values``: [2**(unions - 1), 2**members, ...]: first the mask of the other unions, each whole, then
    that of the members; trailing axes are independent games. Returns [members, ...] in the values' unit:
    ``sum over H, S of w(|H|; unions) w(|S|; members) (v(H + S + i) - v(H + S))`` with Shapley's weights
    ``w(s; n) = s! (n-s-1)! / n!`` (Owen 1977). They sum to the union's Shapley value in the game of unions.
    Raises ``InputError`` when an axis is no power of two.
    """
    table = np.asarray(values, np.float64)
    counts = table.shape[:2]
    if table.ndim < 2 or any(count == 0 or count & (count - 1) for count in counts):
        raise InputError(
            f"Owen values need a table [2**other unions, 2**members, ...], not shape {table.shape}"
        )
    others = counts[0].bit_length() - 1
    by_union = shapley_weights(others + 1)[sizes(others)]
    return exact_shapley(np.tensordot(by_union, table, axes=1))


def sentence_shares(
    scorer: Scorer,
    layout: Layout,
    spans: Sequence[Span],
    attributions: Sequence[Attribution],
    position: int,
    *,
    max_coalitions: int = MAX_COALITIONS,
    pairs: int = PAIRS,
    seed: int = 0,
) -> tuple[SentenceShares, ...]:
    """Share each span's Shapley share of one chunk among the chunk's sentences; one result per span.

    ``layout``: of chunks; ``attributions``: the Shapley shares over it, by the same scorer. Exact while
    ``2**(chunks - 1 + sentences)`` is at most ``max_coalitions``; else estimated from ``pairs`` (at least 2)
    random orders and their reverses, at most ``2 * pairs * (sentences + 1)`` coalitions, and what the sample
    misses of the chunk's share is spread evenly. A chunk of one sentence costs nothing.

    Raises ``InputError`` when the chunk is not in the prompt, a span has no Shapley share or ``pairs`` is 1.
    """
    cut = sentence_layout(layout, [position])
    wanted = _chunk_shares(attributions, spans, position)
    own = cut.players_of(position)
    others = [player for player in range(len(cut.regions)) if player not in own]
    if pairs < 2:
        raise InputError(f"{pairs} pair of orders has no standard error: take at least 2")
    before = scorer.cost
    is_exact = len(own) == 1 or 2 ** (len(others) + len(own)) <= max_coalitions
    errors = np.zeros((len(own), len(spans)))
    if len(own) == 1:
        found = wanted[None]
    elif is_exact:
        found = _exact(scorer, cut, spans, others, own)
    else:
        found, errors = _sampled(scorer, cut, spans, others, own, pairs, seed)
    cost = spent_since(scorer, before)
    missed = wanted - found.sum(axis=0)  # [span]
    shares = found + missed / len(own)
    places = [cut.regions[player].found for player in own]
    return tuple(
        SentenceShares(
            span=span.index,
            position=position,
            starts=tuple(start for start, _ in places),
            ends=tuple(end for _, end in places),
            shares=tuple(shares[:, number].tolist()),
            standard_errors=tuple(errors[:, number].tolist()),
            chunk_share=float(wanted[number]),
            correction=float(missed[number]),
            is_exact=is_exact,
            cost=cost,
        )
        for number, span in enumerate(spans)
    )


def _chunk_shares(
    attributions: Sequence[Attribution], spans: Sequence[Span], position: int
) -> NDArray[np.float64]:
    """The chunk's Shapley share of each span, nats, shape [span]."""
    by_span = {a.span: a.shares for a in attributions if a.method is Method.SHAPLEY}
    if absent := [span.index + 1 for span in spans if span.index not in by_span]:
        raise InputError(
            f"span {absent[0]} has no Shapley shares to share out: compute shapley over the chunks first"
        )
    return np.array([by_span[span.index][position] for span in spans], np.float64)


def _exact(
    scorer: Scorer, cut: SentenceLayout, spans: Sequence[Span], others: Sequence[int], own: Sequence[int]
) -> NDArray[np.float64]:
    """Owen values [sentence, span] from every coalition of whole other chunks and own sentences."""
    masks = [
        _spread(outside, others) | _spread(inside, own)
        for outside in range(1 << len(others))
        for inside in range(1 << len(own))
    ]
    values = span_values(cut, scorer.score(cut, masks), spans)
    return owen_values(values.reshape(1 << len(others), 1 << len(own), len(spans)))


def _sampled(
    scorer: Scorer,
    cut: SentenceLayout,
    spans: Sequence[Span],
    others: Sequence[int],
    own: Sequence[int],
    pairs: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimates and standard errors, both [sentence, span].

    An order of the chunks, and inside the judged one an order of its sentences; each with its reverse, which
    cancels the errors of odd order. The errors are those of the shares once they sum to a known chunk share.
    """
    chains = list(_chains(others, own, pairs, np.random.default_rng(seed)))
    masks = list(dict.fromkeys(mask for _, chain in chains for mask in chain))
    rows = dict(zip(masks, span_values(cut, scorer.score(cut, masks), spans), strict=True))
    gains = np.zeros((len(chains), len(own), len(spans)))
    for number, (order, chain) in enumerate(chains):
        steps = np.diff(np.stack([rows[mask] for mask in chain]), axis=0)
        gains[number, order] = steps
    by_pair = gains.reshape(pairs, 2, len(own), len(spans)).mean(axis=1)
    centred = by_pair - by_pair.mean(axis=1, keepdims=True)
    errors: NDArray[np.float64] = centred.std(axis=0, ddof=1) / np.sqrt(pairs)
    return by_pair.mean(axis=0), errors


def _chains(
    others: Sequence[int], own: Sequence[int], pairs: int, rng: np.random.Generator
) -> Iterator[tuple[list[int], list[int]]]:
    """(order of the sentences, coalitions from "none of them" to "all of them"), an order and its reverse."""
    for _ in range(pairs):
        arrivals = rng.permutation(len(others) + 1).tolist()  # the last number stands for the judged chunk
        sentences = rng.permutation(len(own)).tolist()
        for unions, order in ((arrivals, sentences), (arrivals[::-1], sentences[::-1])):
            earlier = unions[: unions.index(len(others))]
            chain = [_spread(mask_of(earlier), others)]
            for sentence in order:
                chain.append(chain[-1] | 1 << own[sentence])
            yield order, chain


def _spread(mask: int, players: Sequence[int]) -> int:
    """The coalition of ``players[i]`` for every bit i of ``mask``."""
    return mask_of(players[bit] for bit in members(mask))
