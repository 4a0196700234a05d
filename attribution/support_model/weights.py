"""Brings the published encoder of this machine and what was learned together; the latter is all that ships.

The encoder is all-MiniLM-L6-v2, recognised by its digest; what was learned is stored as half-precision
numbers with a card that says what it was learned from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from ragblame.attribution.support_model.adapter import PREFIX, Changes, add
from ragblame.attribution.support_model.encoder import LAYERS, Encoder
from ragblame.attribution.support_model.network import Reader
from ragblame.errors import MissingExtraError, ModelError
from ragblame.minilm_files import WEIGHTS, find_folder, verified

LEARNED: Final = "learned.safetensors"
CARD: Final = "card.json"
SHIPPED: Final = Path(__file__).parent / "model"


@dataclass(frozen=True, slots=True)
class Parts:
    """What reads the tokens of texts."""

    encoder: Encoder
    tokenizer: Any


def original() -> tuple[Any, Any]:
    """The encoder as published, in evaluation, and its tokenizer. Raises ``ModelError`` or
    ``MissingExtraError``."""
    folder = verified(find_folder())
    try:
        import torch
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModel, AutoTokenizer
    except ImportError as error:
        raise MissingExtraError(
            f"the support model needs {error.name}: pip install 'ragblame[attribution]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Not from_pretrained, which draws a bar over the caller's own progress.
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        untyped: Any = AutoModel
        model = untyped.from_config(config, dtype=torch.float32)
        strange = model.load_state_dict(load_file(folder / WEIGHTS), strict=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"all-MiniLM-L6-v2 in {folder} cannot be loaded ({str(error).splitlines()[0]}): install it again"
        ) from error
    if missing := [name for name in strange.missing_keys if not name.startswith("pooler.")]:
        raise ModelError(f"all-MiniLM-L6-v2 in {folder} lacks {missing[0]}: install it again")
    return model.eval(), tokenizer


def fresh() -> Parts:
    """The encoder as published, ready to read. Raises ``ModelError`` or ``MissingExtraError``."""
    model, tokenizer = original()
    return Parts(Encoder(model), tokenizer)


def save(reader: Reader, folder: Path, card: dict[str, Any], changes: Changes | None = None) -> None:
    """Write what one reader learned, as half-precision numbers, with its card and the encoder's changes."""
    learned = {f"0.{name}": value.detach() for name, value in reader.state_dict().items()}
    _write(folder, {name: value.half() for name, value in {**learned, **(changes or {})}.items()}, card)


def join(folders: Sequence[Path], out: Path) -> None:
    """Runs of one encoder as one model, whose log-odds are the mean of theirs. Raises ``ModelError``."""
    tensors: dict[str, Tensor] = {}
    cards, encoders = [], []
    for number, folder in enumerate(folders):
        found, card = _read(folder)
        cards.append(card)
        encoders.append({name: value for name, value in found.items() if _is_change(name)})
        readers = {name: value for name, value in found.items() if not _is_change(name)}
        tensors.update({f"{number}.{name.split('.', 1)[1]}": value for name, value in readers.items()})
    if any(not _equal(encoders[0], other) for other in encoders[1:]):
        raise ModelError("these runs changed the encoder in different ways: join runs of one encoder only")
    own = ("seed", "epochs", "tuning", "begun")
    first = {key: value for key, value in cards[0].items() if key not in own}
    runs = [{key: card[key] for key in own if key in card} for card in cards]
    _write(out, {**tensors, **encoders[0]}, {**first, "runs": runs})


def load_learned(folder: Path) -> tuple[Parts, list[Reader], dict[str, Any]]:
    """The encoder as changed, the readers of a folder, ready to read, and the card.

    Raises ``ModelError``, and ``MissingExtraError`` without torch or transformers.
    """
    tensors, card = _read(folder)
    foreign = ModelError(
        f"the support model in {folder} was learned by another version of ragblame: train it again "
        "(make support-model)"
    )
    if card.get("layers") != list(LAYERS):
        raise foreign
    model, tokenizer = original()
    try:
        add(model, changes_of(folder))
    except (KeyError, RuntimeError) as error:
        raise foreign from error
    parts = Parts(Encoder(model), tokenizer)
    readers = []
    for number in sorted({name.split(".", 1)[0] for name in tensors if not _is_change(name)}):
        mine = {
            name.split(".", 1)[1]: value for name, value in tensors.items() if name.startswith(f"{number}.")
        }
        reader = Reader(parts.encoder.width)
        shapes = {name: value.shape for name, value in reader.state_dict().items()}
        if {name: value.shape for name, value in mine.items()} != shapes:
            raise foreign
        reader.load_state_dict({name: value.float() for name, value in mine.items()})
        readers.append(reader.eval())
    return parts, readers, card


def changes_of(folder: Path) -> Changes:
    """What a run learned about the encoder, nothing if it left it as published. Raises ``ModelError``."""
    return {name: value for name, value in _read(folder)[0].items() if _is_change(name)}


def _is_change(name: str) -> bool:
    return name.startswith(f"{PREFIX}.")


def _equal(one: Changes, other: Changes) -> bool:
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def _write(folder: Path, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / LEARNED)
    (folder / LEARNED).chmod(0o644)  # the library makes it private
    (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n", "utf-8")


def _read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
        return load_file(folder / LEARNED), card
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"the support model in {folder} cannot be read ({error}): install ragblame again"
        ) from error
