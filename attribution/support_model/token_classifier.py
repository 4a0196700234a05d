"""Any Hugging Face token classifier of unsupported text, by name or folder, in place of the shipped model.

The convention is LettuceDetect's (2502.17125): the prompt is the first segment, the answer the second, and
the last class means unsupported. Nothing is downloaded: the model lies in a folder or the local cache.
"""

import threading
from collections.abc import Sequence
from typing import Any, Final

from ragblame.attribution.verdicts.learned import SupportReading
from ragblame.errors import MissingExtraError, ModelError

_PASSAGE: Final = "\n\npassage {}: {}"
_PROMPT: Final = (
    "Briefly answer the following question:\n{}\nBear in mind that your response should be strictly based on "
    "the following {} passages:{}\n\nIn case the passages do not contain the necessary information to answer "
    'the question, please reply with: "Unable to answer based on given passages."\noutput:'
)
_LONGEST: Final = 4096  # tokens read at once where the model names no limit of its own


class TokenClassifier:
    """A token classifier from the local cache, safe to share between threads; they take turns."""

    def __init__(self, name: str) -> None:
        """Raises ``ModelError`` when it is not on this machine or is no token classifier."""
        try:
            from transformers import AutoModelForTokenClassification, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError(
                f"the support model needs {error.name}: pip install 'ragblame[attribution]'"
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(name, local_files_only=True)
            self._model: Any = AutoModelForTokenClassification.from_pretrained(
                name, local_files_only=True, use_safetensors=True
            ).eval()
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the token classifier {name} cannot be loaded ({str(error).splitlines()[0]}): put it into "
                "the local Hugging Face cache, give a folder, or unset RAGBLAME_SUPPORT_MODEL"
            ) from error
        if not self._tokenizer.is_fast:
            raise ModelError(f"the tokenizer of {name} gives no offsets: use a model with a fast tokenizer")
        if self._model.config.num_labels < 2:
            raise ModelError(f"{name} has a single class: give a classifier of supported and unsupported")
        limits = (self._tokenizer.model_max_length, self._model.config.max_position_embeddings)
        self._longest = min((limit for limit in limits if limit and limit < 1_000_000), default=_LONGEST)
        self._lock = threading.Lock()
        self.name = f"{name}@{getattr(self._model.config, '_commit_hash', None) or 'local'}"

    def read(self, question: str, answer: str, chunks: Sequence[str]) -> SupportReading:
        """As the shipped model's; the answer is as doubtful as its most doubtful token.

        Raises ``ModelError`` when the answer alone is longer than the model reads; of the chunks, what does
        not fit is not read.
        """
        import torch

        passages = "".join(_PASSAGE.format(index + 1, text) for index, text in enumerate(chunks))
        prompt = _PROMPT.format(question, len(chunks), passages)
        with self._lock:
            try:
                encoded = self._tokenizer(
                    prompt,
                    answer,
                    truncation="only_first",
                    max_length=self._longest,
                    return_offsets_mapping=True,
                    return_tensors="pt",
                )
            except Exception as error:  # the tokenizers library raises its own, untyped
                raise ModelError(
                    f"{self.name} reads {self._longest} tokens, too few for this answer: use another model"
                ) from error
            offsets = encoded.pop("offset_mapping")[0].tolist()
            mine = [index for index, part in enumerate(encoded.sequence_ids(0)) if part == 1]
            with torch.inference_mode():
                probabilities = self._model(**encoded).logits[0].float().softmax(-1)[:, -1]
        found = [(*offsets[index], float(probabilities[index])) for index in mine]
        kept = [(start, end, value) for start, end, value in found if end > start]
        return SupportReading(
            model=self.name,
            starts=tuple(start for start, _, _ in kept),
            ends=tuple(end for _, end, _ in kept),
            probabilities=tuple(value for _, _, value in kept),
            answer_probability=max((value for _, _, value in kept), default=0.0),
        )
