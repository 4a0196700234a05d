"""Where the host's own code stands: the run around it, and how that is carried into its own threads.

LangChain keeps the current run in a context variable. Tasks inherit those, raw threads do not: what runs
there would look like a chain of its own.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar, cast, overload
from uuid import UUID

from ragblame.plugin.run_tree import RunTree, open_runs

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def running_config() -> Mapping[str, Any]:
    """The configuration of the LangChain step that runs in this context; empty outside of one."""
    config_module = sys.modules.get("langchain_core.runnables.config")
    return (config_module.var_child_runnable_config.get() if config_module is not None else None) or {}


def current_tree() -> RunTree | None:
    """The tree of the LangChain step that runs in this context, if LangChain is at work at all."""
    return _tree_of(_running_id())


def enclosing_run(source: object) -> UUID | None:
    """The run around one that has no parent: some wrappers hand on a call without saying so.

    RunnableWithFallbacks calls its alternatives with its own callbacks, so that each looks like a root. A run
    without a parent belongs to the run around it when that is such a wrapper, or was called with the very
    same object.
    """
    run_id = _running_id()
    tree = _tree_of(run_id)
    if tree is not None and (tree.is_fallback or (source is not None and id(source) == tree.source)):
        return run_id
    return None


def _running_id() -> UUID | None:
    run_id = getattr(running_config().get("callbacks"), "parent_run_id", None)
    return run_id if isinstance(run_id, UUID) else None


def _tree_of(run_id: UUID | None) -> RunTree | None:
    tree = open_runs.find(run_id) if run_id is not None else None
    return tree if tree is not None and tree.ended is None else None


@overload
def propagate(target: Executor) -> Executor: ...


@overload
def propagate(target: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]: ...


def propagate(target: Any) -> Any:
    """Make an executor, or a function for a thread, run within the chain step that hands it work.

    ``propagate(pool).submit(search, text)`` and ``Thread(target=propagate(work))`` keep retrievers and models
    that run over there inside the trace of the step. An executor carries the context of each ``submit`` or
    ``map``, a function that of the ``propagate`` call. The wrapped executor shuts down the one it wraps. An
    executor of other processes is returned as it is: a context cannot be sent there.
    """
    if callable(getattr(target, "submit", None)):
        if any(kind.__name__ == "ProcessPoolExecutor" for kind in type(target).__mro__):
            return target
        return _Propagating(cast(Executor, target))
    context = copy_context()

    @functools.wraps(target)
    def run(*args: Any, **kwargs: Any) -> Any:
        return context.copy().run(target, *args, **kwargs)  # a copy: one context serves one thread at a time

    return run


class _Propagating(Executor):
    """An executor that runs each piece of work in a copy of the context that handed it over."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner

    def submit(
        self, fn: Callable[_Parameters, _Result], /, *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> Future[_Result]:
        """As ``Executor.submit``."""
        return self._inner.submit(functools.partial(copy_context().run, fn, *args, **kwargs))

    def map(
        self,
        fn: Callable[..., _Result],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[_Result]:
        """As ``Executor.map``."""
        return self._inner.map(propagate(fn), *iterables, timeout=timeout, chunksize=chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As ``Executor.shutdown``."""
        self._inner.shutdown(wait, cancel_futures=cancel_futures)
