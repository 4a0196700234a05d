"""pgvector's distances: their operators, and which of them a table's indexes are made for."""

from collections.abc import Mapping, Sequence
from typing import Final

METRICS: Final[Mapping[str, tuple[str, str]]] = {  # name in a configuration -> operator, name on a screen
    "cosine": ("<=>", "cosine distance"),
    "l2": ("<->", "Euclidean distance"),
    "inner product": ("<#>", "negative inner product"),
    "l1": ("<+>", "taxicab distance"),
}
USUAL: Final = "cosine"  # what langchain-postgres searches by unless told otherwise
_CLASSES: Final = {"cosine": "cosine_ops", "l2": "l2_ops", "inner product": "ip_ops", "l1": "l1_ops"}


def made_for(operator_classes: Sequence[str]) -> list[str]:
    """The distances, keys of ``METRICS``, that indexes with these operator classes serve."""
    return [
        name
        for name, ending in _CLASSES.items()
        if not {f"vector_{ending}", f"halfvec_{ending}"}.isdisjoint(operator_classes)
    ]
