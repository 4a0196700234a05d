"""Where the shipped small model is and how to load it, with no network and no cache of anybody's.

It exists so that the demo, the tests and the evaluations all read the same weights in the same way.
"""

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def model_path() -> Path:
    """The folder of the shipped model, readable by `AutoModelForCausalLM` and `AutoTokenizer`."""
    folder = Path(str(files("ragblame.attribution.world"))) / "model"
    if not (folder / "model.safetensors").exists():
        message = (
            f"no shipped model in {folder}: run `python -m ragblame.attribution.world.training` or reinstall"
        )
        raise FileNotFoundError(message)
    return folder


def load_tokenizer(folder: Path | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer of the shipped model (or of another folder a training run wrote)."""
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder or model_path(), local_files_only=True
    )
    return tokenizer


def load_model(folder: Path | None = None) -> "PreTrainedModel":
    """The model in evaluation mode and float32: stored in half precision, computed in single."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder or model_path(), local_files_only=True, dtype="float32"
    )
    model.train(False)
    return model
