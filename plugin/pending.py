"""Documents a host retrieved outside LangChain, waiting for the run they belong to.

Within a running chain they join its trace at once. Before one they wait in the caller's context, for a minute
at most: a thread may serve another user next.
"""

import sys
import time
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

from ragblame.plugin import payloads
from ragblame.plugin.counters import counters
from ragblame.plugin.run_tree import RunTree, open_runs
from ragblame.records import Chunk
from ragblame.suppression import is_suppressed

WAIT_SECONDS: Final = 60.0

_pending: ContextVar[list[tuple[float, tuple[Chunk, ...]]] | None] = ContextVar(
    "ragblame_pending", default=None
)


def record_retrieval(documents: Sequence[Any], *, source_table: str | None = None) -> None:
    """Tell the capture what was retrieved, for searches that do not go through a LangChain retriever.

    Call it inside a step of the chain, or right before the chain or model is called in the same context (the
    next captured run takes the documents, within 60 seconds). Documents need ``page_content`` and may carry
    ``id`` and ``metadata``; pairs of document and score are read too. Never raises, never waits.
    """
    if is_suppressed():
        return
    try:
        chunks = payloads.read_chunks(documents, None, source_table)
        tree = _current_tree()
        if tree is not None:
            tree.recorded.extend(chunks)
            open_runs.hold(tree, *(chunk.text for chunk in chunks))
            return
        waiting = _pending.get()
        if waiting is None:
            waiting = []
            _pending.set(waiting)
        waiting.append((time.monotonic(), chunks))
    except Exception as error:
        counters.note_fault(error)


def take_pending() -> list[Chunk]:
    """What waits in this context for its run, once. The list itself is shared with copied contexts."""
    waiting = _pending.get()
    if not waiting:
        return []
    taken, waiting[:] = list(waiting), []
    oldest = time.monotonic() - WAIT_SECONDS
    return [chunk for at, chunks in taken if at >= oldest for chunk in chunks]


def _current_tree() -> RunTree | None:
    """The tree of the LangChain step that runs in this context, if LangChain is at work at all."""
    config_module = sys.modules.get("langchain_core.runnables.config")
    config = config_module.var_child_runnable_config.get() if config_module is not None else None
    run_id = getattr((config or {}).get("callbacks"), "parent_run_id", None)
    tree = open_runs.find(run_id) if run_id is not None else None
    return tree if tree is not None and tree.ended is None else None
