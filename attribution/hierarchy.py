"""From chunks to sentences: which sentence of the chunk that matters most moved each span.

It exists so that a person who asks "why this chunk?" need not read all of it. Asked for one answer at a time,
as it scores further coalitions.
"""

from collections import defaultdict
from collections.abc import Callable

from ragblame.attribution.layout import build_layout
from ragblame.attribution.methods.sentence_shares import SentenceShares, sentence_shares
from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import InputError
from ragblame.records import Explanation, Method, Span

Progress = Callable[[float], None]  # part done, [0, 1]


def top_sentences(
    scorer: TransformersScorer, explanation: Explanation, *, progress: Progress = lambda part: None
) -> tuple[SentenceShares, ...]:
    """For every span that depends on a chunk, the shares of that chunk's sentences, by span.

    The chunk is the one with the largest Shapley share; spans without a positive share are left out. Spans
    with the same chunk share one sweep. ``scorer`` must be the one that made the explanation.

    Raises ``InputError`` when the explanation holds no Shapley shares, ``ModelError`` as scoring does.
    """
    spans = {span.index: span for span in explanation.spans}
    by_chunk: dict[int, list[Span]] = defaultdict(list)
    shapley = [one for one in explanation.attributions if one.method is Method.SHAPLEY]
    if not shapley:
        raise InputError(
            "no shares were computed for this answer, so no chunk can be split into sentences; the notes of "
            "`ragblame explain` say why"
        )
    for attribution in shapley:
        best = max(range(len(attribution.shares)), key=lambda i: attribution.shares[i], default=None)
        if best is not None and attribution.shares[best] > (attribution.noise_floor or 0.0):
            by_chunk[best].append(spans[attribution.span])
    layout = build_layout(explanation.trace, explanation.alignments, scorer.tokenizer)
    found: list[SentenceShares] = []
    for done, (position, these) in enumerate(sorted(by_chunk.items())):
        with scorer.watched(lambda part, done=done: progress((done + part) / len(by_chunk))):  # type: ignore[misc]
            found += sentence_shares(scorer, layout, these, shapley, position)
    return tuple(sorted(found, key=lambda one: one.span))
