"""One line per process: every LangChain run from then on is seen by our handler.

LangChain asks each registered hook for a handler whenever it configures callbacks. Ours answers with one
shared handler, or with nothing while detached or suppressed; an explicit BlameHandler in the same call takes
precedence.
"""

import threading
from contextvars import ContextVar
from typing import Any, cast

from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.sampling import require_rate
from ragblame.suppression import is_suppressed


class _Switch:
    """Stands where LangChain expects a context variable: a real one could not be switched off everywhere."""

    def __init__(self) -> None:
        self.handler: BlameHandler | None = None
        self.is_registered = False
        self.lock = threading.Lock()

    def get(self) -> BlameHandler | None:
        """The handler LangChain adds to the run it is configuring."""
        return None if is_suppressed() else self.handler


_switch = _Switch()


def attach(
    app: str | None = None, *, source_table: str | None = None, sample_rate: float | None = None
) -> BlameHandler:
    """Capture every answered question of this process's LangChain chains; call it once, at start-up.

    Recorded are runs in which a model answered and retrieved chunks were seen; other runs leave no trace. (A
    ``BlameHandler`` given to a call records that call's answer even without chunks.) ``sample_rate`` is the
    share of the answers recorded, 0 to 1; None: the setting ``capture_sample_rate``. Calling it again changes
    the options that are given, and never records anything twice. Needs no database, file or network at once;
    faults show in ``ragblame doctor``. Returns the shared handler.

    Raises ``InputError`` when ``sample_rate`` lies outside 0 to 1.
    """
    if sample_rate is not None:
        require_rate(sample_rate)
    with _switch.lock:
        if _switch.handler is None:
            _switch.handler = BlameHandler()
            _switch.handler.explicit = False
        if app is not None:
            _switch.handler.app = app
        if source_table is not None:
            _switch.handler.source_table = source_table
        if sample_rate is not None:
            _switch.handler.sample_rate = sample_rate
        if not _switch.is_registered:
            # here, because it is heavy on its own (0.4 s); a host that runs chains has it loaded
            from langchain_core.tracers.context import register_configure_hook

            register_configure_hook(
                cast(ContextVar[Any], _switch), inheritable=True, handle_class=BlameHandler
            )
            _switch.is_registered = True
        return _switch.handler


def detach() -> None:
    """Stop capturing runs that start from now on; explicit handlers go on. Harmless when not attached."""
    with _switch.lock:
        _switch.handler = None
