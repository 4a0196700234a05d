"""Load a causal LM and its tokenizer from disk, offline, with one clear line for all that can be wrong.

The library underneath would rather fill missing weights with noise, read a pickle or run an encoder left to
right; a debugger that explains answers with such a model would lie, so each of these is refused here.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from ragblame.errors import ModelError

_WEIGHTS = ("*.safetensors",)
_NEXT = "set RAGBLAME_SCORER to a folder with a causal LM, or leave it out for the shipped model"


def load(
    name_or_path: str, *, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Frozen model in evaluation mode, fast tokenizer and revision, from a folder or the local cache.

    float32 on a CPU; on an accelerator the precision of the checkpoint (the scorer then keeps its head in
    float32). Raises ``ModelError`` naming what is wrong and the next step.
    """
    folder = Path(name_or_path)
    is_folder = folder.is_dir()
    if not is_folder and (folder.is_absolute() or name_or_path.startswith((".", "~"))):
        raise ModelError(f"model folder {name_or_path} does not exist; {_NEXT}")
    if is_folder and not (folder / "config.json").is_file():
        raise ModelError(f"model folder {name_or_path} has no config.json; {_NEXT}")
    _check_family(name_or_path, _read_config(name_or_path))
    tokenizer = _load_tokenizer(name_or_path)
    target = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = _load_model(name_or_path, torch.float32 if target == "cpu" else "auto")
    model.train(False)
    model.requires_grad_(False)
    torch.nn.Module.to(model, torch.device(target))  # PreTrainedModel.to is typed for a wrapper's sake
    commit = getattr(model.config, "_commit_hash", None)
    revision = _digest_files(folder) if is_folder else (str(commit)[:16] if commit else digest_state(model))
    return model, tokenizer, revision


def digest_state(model: PreTrainedModel) -> str:
    """First 16 hex digits of the SHA-256 over names, types and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _digest_files(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _read_config(name_or_path: str) -> Mapping[str, Any]:
    """The raw configuration, because the library's own error for an unknown family names no next step."""
    try:
        found = cached_file(name_or_path, "config.json", local_files_only=True)
        config = json.loads(Path(str(found)).read_text("utf-8"))
    except OSError as error:
        raise ModelError(
            f"model {name_or_path} is not on this machine (nothing is downloaded); {_NEXT}"
        ) from error
    except ValueError as error:
        raise ModelError(
            f"config.json of {name_or_path} is damaged ({error}); copy the model again"
        ) from error
    if not isinstance(config, dict):
        raise ModelError(f"config.json of {name_or_path} is damaged (not an object); copy the model again")
    return config


def _check_family(name_or_path: str, config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    version = transformers.__version__
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"config.json of {name_or_path} names no model_type; {_NEXT}")
    if model_type not in transformers.CONFIG_MAPPING:
        raise ModelError(
            f"model type {model_type!r} of {name_or_path} is unknown to transformers {version}; "
            "upgrade transformers or use another scorer"
        )
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"model type {model_type!r} of {name_or_path} is an encoder-decoder; "
            f"a scorer must be a causal LM; {_NEXT}"
        )
    if transformers.CONFIG_MAPPING[model_type] not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model type {model_type!r} of {name_or_path} is no causal LM in transformers {version}; {_NEXT}"
        )


def _load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, local_files_only=True, use_fast=True)
    except Exception as error:  # missing and damaged files surface as many kinds
        raise ModelError(
            f"the tokenizer of {name_or_path} cannot be read ({_line(error)}); save a fast tokenizer "
            "(tokenizer.json) beside the model"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{name_or_path} has no fast tokenizer, so tokens cannot be mapped to text; "
            "save a fast tokenizer (tokenizer.json) beside the model"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def _load_model(name_or_path: str, dtype: "torch.dtype | str") -> PreTrainedModel:
    had_bar = transformers.utils.logging.is_progress_bar_enabled()
    hide_bar: Callable[[], None] = transformers.utils.logging.disable_progress_bar
    show_bar: Callable[[], None] = transformers.utils.logging.enable_progress_bar
    hide_bar()  # the caller shows progress of its own
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            name_or_path, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
        )
    except (SafetensorError, RuntimeError) as error:
        raise ModelError(
            f"the weights of {name_or_path} are damaged ({_line(error)}); copy the model again"
        ) from error
    except Exception as error:  # as above: one line, whatever the library raised
        raise ModelError(f"model {name_or_path} cannot be loaded ({_line(error)}); {_NEXT}") from error
    finally:
        if had_bar:
            show_bar()
    model, info = cast("tuple[PreTrainedModel, Mapping[str, Any]]", loaded)
    lost = sorted(str(key) for key in [*info.get("missing_keys", ()), *info.get("mismatched_keys", ())])
    if lost:
        raise ModelError(
            f"the weights of {name_or_path} lack {len(lost)} tensors, e.g. {lost[0]}, which would be "
            "random noise; copy the whole model"
        )
    return model


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
