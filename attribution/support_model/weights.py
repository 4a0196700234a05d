"""Builds the reader from the encoder on this machine and what was learned, which is all that ships.

The encoder is all-MiniLM-L6-v2, recognised by its digest; what was learned are low-rank adapters and a head,
stored as half-precision numbers with a card that says what they were learned from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ragblame.attribution.support_model.network import Reader
from ragblame.errors import MissingExtraError, ModelError
from ragblame.minilm_files import find_folder, verified

LEARNED: Final = "learned.safetensors"
CARD: Final = "card.json"
SHIPPED: Final = Path(__file__).parent / "model"


@dataclass(frozen=True, slots=True)
class Parts:
    """What the reader is made of."""

    reader: Reader
    tokenizer: Any


def fresh() -> Parts:
    """The encoder with adapters that add nothing yet. Raises ``ModelError`` or ``MissingExtraError``."""
    folder = verified(find_folder())
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"the support model needs {error.name}: pip install 'ragblame[attribution]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, add_pooling_layer=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"all-MiniLM-L6-v2 in {folder} cannot be loaded ({str(error).splitlines()[0]}): install it again"
        ) from error
    return Parts(Reader(encoder), tokenizer)


def save(reader: Reader, folder: Path, card: dict[str, Any]) -> None:
    """Write what was learned, as half-precision numbers, and its card."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in reader.learned()}
    save_file(tensors, folder / LEARNED)
    (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", "utf-8")


def load_learned(reader: Reader, folder: Path) -> dict[str, Any]:
    """Put what was learned into the reader; returns the card. Raises ``ModelError``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
        tensors = load_file(folder / LEARNED)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"the support model in {folder} cannot be read ({error}): install ragblame again"
        ) from error
    expected = dict(reader.learned())
    if {name: value.shape for name, value in tensors.items()} != {n: v.shape for n, v in expected.items()}:
        raise ModelError(
            f"the support model in {folder} was learned by another version of ragblame: train it again "
            "(make support-model)"
        )
    reader.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    return card
