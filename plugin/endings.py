"""How a run ended, told from the exception that ended it: not every exception is a failure.

Classes are recognised by name, so that neither langgraph nor an asynchronous framework is ever imported.
"""

from typing import Final

from ragblame.trace_records import TraceStatus

# A graph that stops to ask a person, or on request, and can be resumed.
_PAUSES: Final = frozenset({"GraphInterrupt", "NodeInterrupt", "GraphDrained"})
# Anything else that a graph raises only to steer itself, such as a hand-over to the graph around it.
_STEERING: Final = frozenset({"GraphBubbleUp", "ParentCommand"})


def is_pause(error: BaseException) -> bool:
    """Whether a graph paused here, to be resumed later."""
    return not _PAUSES.isdisjoint(_names(error))


def status_of(error: BaseException) -> TraceStatus:
    """The status of a root run that this exception ended."""
    if isinstance(error, GeneratorExit):
        return TraceStatus.ABANDONED
    names = _names(error)
    if not (_PAUSES | _STEERING).isdisjoint(names):
        return TraceStatus.INTERRUPTED
    if "CancelledError" in names or isinstance(error, KeyboardInterrupt):
        return TraceStatus.CANCELLED
    return TraceStatus.ERROR


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}
