"""git blame for RAG answers: which retrieved PostgreSQL chunks caused every span of an answer.

Everything here is loaded on first use, so that importing ragblame into a production chain costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ragblame.errors import MissingExtraError

if TYPE_CHECKING:
    from ragblame.attribution.debugger import Debugger
    from ragblame.plugin.attach import attach, detach
    from ragblame.plugin.handler import BlameHandler
    from ragblame.plugin.host_context import propagate
    from ragblame.plugin.metrics import metrics, metrics_app
    from ragblame.plugin.pending import record_retrieval
    from ragblame.plugin.recorder import flush
    from ragblame.plugin.redaction import redact_with
    from ragblame.plugin.retrieval import tell_search
    from ragblame.plugin.sampling import keep
    from ragblame.trace_records import Chunk, Trace

__version__ = "0.1.0"
__all__ = [
    "BlameHandler",
    "Chunk",
    "Debugger",
    "Trace",
    "__version__",
    "attach",
    "detach",
    "flush",
    "keep",
    "metrics",
    "metrics_app",
    "propagate",
    "record_retrieval",
    "redact_with",
    "tell_search",
]

_HOMES = {
    "attach": "ragblame.plugin.attach",
    "detach": "ragblame.plugin.attach",
    "flush": "ragblame.plugin.recorder",
    "keep": "ragblame.plugin.sampling",
    "metrics": "ragblame.plugin.metrics",
    "metrics_app": "ragblame.plugin.metrics",
    "propagate": "ragblame.plugin.host_context",
    "record_retrieval": "ragblame.plugin.pending",
    "redact_with": "ragblame.plugin.redaction",
    "tell_search": "ragblame.plugin.retrieval",
    "BlameHandler": "ragblame.plugin.handler",
    "Debugger": "ragblame.attribution.debugger",
    "Chunk": "ragblame.trace_records",
    "Trace": "ragblame.trace_records",
}
_ATTRIBUTION = {"torch", "transformers", "numpy", "safetensors", "sentencex", "rapidfuzz"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'ragblame' has no attribute {name!r}")
    try:
        value = getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if name == "Debugger" and (error.name or "").split(".")[0] in _ATTRIBUTION:
            raise MissingExtraError(
                f"ragblame.Debugger needs {error.name}: pip install 'ragblame[attribution]'"
            ) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
