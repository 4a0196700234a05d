"""The switch that keeps our own work out of the record: what runs inside it is never captured.

A worker that re-runs a model, or a probe that searches the corpus, may itself go through LangChain; tracing
that would feed the triage queue with itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

_suppressed: ContextVar[bool] = ContextVar("ragblame_suppressed", default=False)


@contextmanager
def suppress_capture() -> Iterator[None]:
    """Nothing that LangChain runs inside this block, in this context, becomes a trace."""
    token = _suppressed.set(True)
    try:
        yield
    finally:
        _suppressed.reset(token)


is_suppressed: Final = _suppressed.get  # whether the current context runs inside ``suppress_capture``
