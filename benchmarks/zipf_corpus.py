"""A corpus in which few chunks are popular, as in production: captured chains and stored traces draw from it.

It exists because chunks that came before cost less, to capture and to storage: a benchmark in which every
search finds the same ones would flatter them, and one in which none comes twice would wrong them.
"""

import itertools
import random
from typing import Final

TEXTS: Final = 2_000  # distinct chunks
CHUNKS: Final = 8  # that a search finds
_WORDS: Final = 4_000
_WEIGHTS: Final = tuple(itertools.accumulate(1 / rank for rank in range(1, TEXTS + 1)))  # Zipf's law


class ZipfCorpus:
    """Texts of made-up words, seven code points each with its space on average."""

    def __init__(self, pick: random.Random, *, length: int = 150) -> None:
        """``length``: words of a chunk."""
        self.words = ["".join(pick.choices("etaoinshrdlucmfw", k=pick.randint(2, 10))) for _ in range(_WORDS)]
        self.texts = [" ".join(pick.choices(self.words, k=length)) for _ in range(TEXTS)]

    def search(self, pick: random.Random) -> list[int]:
        """``CHUNKS`` different places in ``texts``, as a search would find them."""
        found: dict[int, None] = {}
        while len(found) < CHUNKS:
            found |= dict.fromkeys(pick.choices(range(TEXTS), cum_weights=_WEIGHTS, k=CHUNKS - len(found)))
        return list(found)
