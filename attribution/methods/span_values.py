"""From log-probabilities of answer tokens to v(S) of spans, summed in float64."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ragblame.attribution.layout import Layout
from ragblame.records import Span


def span_values(layout: Layout, log_probs: NDArray[np.float32], spans: Sequence[Span]) -> NDArray[np.float64]:
    """Value of each span in each coalition, nats, shape [coalition, span].

    ``log_probs``: [coalition, answer token], as a scorer gives them. A span without tokens is worth 0.
    """
    values = np.zeros((len(log_probs), len(spans)))
    for number, span in enumerate(spans):
        values[:, number] = log_probs[:, list(layout.span_tokens(span))].sum(axis=1, dtype=np.float64)
    return values
