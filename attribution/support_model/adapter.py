"""What was learned about the encoder itself: low-rank changes of its matrices.

The change of a matrix is a product of two thin ones (Hu et al. 2022, "LoRA", section 4.1), so that little
ships. It is added to the weights when they are loaded, and costs nothing from then on.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor

PLACES: Final = {  # of one layer of a transformers BertModel
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "wide": "intermediate.dense",
    "narrow": "output.dense",
}
PREFIX: Final = "encoder"  # of the names below, among all that was learned

Changes = Mapping[str, Tensor]  # "encoder.LAYER.PLACE.down" [rank, in], "….up" [out, rank]


def name_of(layer: int, place: str, part: str) -> str:
    """``part``: "down" or "up"; layers count from 0."""
    return f"{PREFIX}.{layer}.{place}.{part}"


@torch.no_grad()
def add(model: Any, changes: Changes) -> None:
    """Add ``up @ down`` to the matrices of a ``BertModel``.

    Raises ``KeyError`` for a change without its other half or of a matrix that is not there, and
    ``RuntimeError`` for one of another shape.
    """
    left = set(changes)
    for number, layer in enumerate(model.encoder.layer):
        for place, path in PLACES.items():
            up, down = (name_of(number, place, part) for part in ("up", "down"))
            if {up, down} & left:
                weight: Tensor = attrgetter(path)(layer).weight
                weight += (changes[up].float() @ changes[down].float()).to(weight.dtype)
                left -= {up, down}
    if left:
        raise KeyError(min(left))
