"""The support model as it is used: loaded once, then every answer in one go.

It says how likely people would call each token unsupported. Another token classifier takes its place by name
(``token_classifier.py``); which of the two read an answer stands in every verdict.
"""

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ragblame.attribution.support_model.cutting import Cutter, parts_of
from ragblame.attribution.verdicts.learned import SupportReading
from ragblame.errors import MissingExtraError

if TYPE_CHECKING:
    from ragblame.attribution.support_model.network import Memory, Reader

MAX_ANSWER: Final = 16_000  # code points of an answer that are read; what comes later is for the rules
AT_ONCE: Final = 768  # tokens of an answer that attend to each other


class SupportModel:
    """The shipped reader, safe to share between threads; they take turns."""

    def __init__(self, cutter: Cutter, memory: "Memory", readers: "Sequence[Reader]", name: str) -> None:
        """``name``: name@revision. Use ``load``."""
        self.name = name
        self._cutter, self._memory, self._readers = cutter, memory, readers
        self._lock = threading.Lock()  # a fast tokenizer refuses to be used by two threads at once

    @classmethod
    def load(cls, folder: Path | None = None) -> "SupportModel":
        """From what was learned in ``folder``, None for what ships.

        Raises ``ModelError`` when weights are missing or were learned by another version, and
        ``MissingExtraError`` without torch or transformers.
        """
        try:
            from ragblame.attribution.support_model import network, weights
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"the support model needs {error.name}: pip install 'ragblame[attribution]'"
            ) from error
        place = folder or weights.SHIPPED
        parts, readers, card = weights.load_learned(place)
        digest = hashlib.sha256((place / weights.LEARNED).read_bytes()).hexdigest()
        memory = network.Memory(parts.encoder)
        return cls(Cutter(parts.tokenizer), memory, readers, f"{card['name']}@{digest[:12]}")

    def read(self, question: str, answer: str, chunks: Sequence[str]) -> SupportReading:
        """How likely each token of the answer, and anything in it, is unsupported.

        An answer of several parts is as doubtful as its most doubtful part.
        """
        import torch

        with self._lock, torch.inference_mode():
            reading = self._cutter.cut(question, answer[:MAX_ANSWER], chunks)
            tokens, wholes = [], []
            for part in parts_of(reading, AT_ONCE):
                batch = self._memory.batch([part])
                read = [reader(batch) for reader in self._readers]
                token, whole = (torch.stack(logits).mean(0) for logits in zip(*read, strict=True))
                tokens.append(token[0, : part.tokens])
                wholes.append(whole)
        return SupportReading(
            model=self.name,
            starts=tuple(reading.starts.tolist()),
            ends=tuple(reading.ends.tolist()),
            probabilities=tuple(torch.cat(tokens).sigmoid().tolist()),
            answer_probability=float(torch.cat(wholes).max().sigmoid()),
            left_out=reading.left_out,
            read_to=MAX_ANSWER if len(answer) > MAX_ANSWER else None,
        )
