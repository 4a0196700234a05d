"""The corpus' embedding model as the settings name it, loaded once: scores and the probe share it."""

from functools import cache
from importlib import import_module

from langchain_core.embeddings import Embeddings

from ragblame.errors import InputError, RagblameError

DEFAULT = "ragblame.retriever.minilm:MiniLMEmbeddings"


@cache
def load_embeddings(path: str | None) -> Embeddings:
    """The model at ``module:name``: an object or what makes one; None: all-MiniLM-L6-v2.

    Raises ``InputError`` when there is none, and whatever of the family the model itself raises.
    """
    path = path or DEFAULT
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
        found = found if hasattr(found, "embed_query") and not isinstance(found, type) else found()
        if not hasattr(found, "embed_query"):
            raise TypeError(f"{type(found).__name__} has no embed_query")
    except RagblameError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"the setting embeddings = {path!r} gives no embedding model ({reason}): write "
            "module:name of a LangChain Embeddings object or of what makes one"
        ) from error
    model: Embeddings = found
    return model
