"""Documents a host retrieved outside LangChain, waiting for the run they belong to.

Within a running chain they join its trace at once. Before one they wait in the caller's context, for a minute
at most: a thread may serve another user next.
"""

import time
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Final

from ragblame.plugin.counters import counters
from ragblame.plugin.host_context import current_tree
from ragblame.plugin.passages import read_passages
from ragblame.plugin.retrieval import note_of
from ragblame.plugin.run_tree import Search, open_runs
from ragblame.suppression import is_suppressed

WAIT_SECONDS: Final = 60.0
_MAX_WAITING: Final = 100  # searches of one context that nothing was asked after

_pending: ContextVar[list[tuple[float, Search]] | None] = ContextVar("ragblame_pending", default=None)


def record_retrieval(
    documents: Sequence[Any],
    *,
    source_table: str | None = None,
    query: str | None = None,
    k: int | None = None,
    filter: Mapping[str, Any] | None = None,
    search_type: str | None = None,
) -> None:
    """Tell the capture what was retrieved, for searches that do not go through a LangChain retriever.

    Call it inside a step of the chain, or right before the chain or model is called in the same context (the
    next captured run takes the documents, within 60 seconds). Documents need ``page_content`` and may carry
    ``id`` and ``metadata``; pairs of document and score are read too. ``query`` is what was searched for, and
    ``k``, ``filter`` and ``search_type`` ("similarity", "mmr", …) how: causes need them.
    Never raises, never waits.
    """
    if is_suppressed():
        return
    try:
        passages, found = read_passages(documents)
        search = Search(
            run_id=None,
            query=query,
            name="record_retrieval",
            table=source_table,
            retrieval=note_of(k, filter, search_type),
            passages=passages,
            found=found,
        )
        tree = current_tree()
        if tree is not None:
            tree.told.append(search)
            open_runs.hold(tree, *(passage.text for passage in passages))
            return
        waiting = _pending.get()
        if waiting is None:
            waiting = []
            _pending.set(waiting)
        waiting.append((time.monotonic(), search))
        del waiting[:-_MAX_WAITING]
    except Exception as error:
        counters.note_fault(error)


def take_pending() -> list[Search]:
    """What waits in this context for its run, once. The list itself is shared with copied contexts."""
    waiting = _pending.get()
    if not waiting:
        return []
    taken, waiting[:] = list(waiting), []
    oldest = time.monotonic() - WAIT_SECONDS
    return [search for at, search in taken if at >= oldest]
