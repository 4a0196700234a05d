"""Brings the frozen encoder of this machine and what was learned together; the latter is all that ships.

The encoder is all-MiniLM-L6-v2, recognised by its digest; what was learned is stored as half-precision
numbers with a card that says what it was learned from.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ragblame.attribution.support_model.network import Encoder, Reader
from ragblame.errors import ModelError
from ragblame.minilm_files import find_folder, load

LEARNED: Final = "learned.safetensors"
CARD: Final = "card.json"
SHIPPED: Final = Path(__file__).parent / "model"


@dataclass(frozen=True, slots=True)
class Parts:
    """What reads an answer."""

    reader: Reader
    encoder: Encoder
    tokenizer: Any


def fresh() -> Parts:
    """The encoder, and a reader that has learned nothing. Raises ``ModelError`` or ``MissingExtraError``."""
    loaded = load(find_folder())
    encoder = Encoder(loaded.model)
    return Parts(Reader(encoder.width), encoder, loaded.tokenizer)


def save(reader: Reader, folder: Path, card: dict[str, Any]) -> None:
    """Write what was learned, as half-precision numbers, and its card."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: value.detach().to(torch.float16).contiguous() for name, value in reader.state_dict().items()
    }
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
    expected = reader.state_dict()
    if {name: value.shape for name, value in tensors.items()} != {n: v.shape for n, v in expected.items()}:
        raise ModelError(
            f"the support model in {folder} was learned by another version of ragblame: train it again "
            "(make support-model)"
        )
    reader.load_state_dict({name: value.float() for name, value in tensors.items()})
    return card
