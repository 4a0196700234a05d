"""Which answers are recorded when not all are: decided by the trace's own id, except for what matters most.

The decision is a function of the id alone, so that every process and every later look agree on it. What went
wrong and what the host asked to keep is recorded whatever the rate; each such trace says why it is there, so
that a share counted over the others stays an honest estimate.
"""

from typing import Final
from uuid import UUID

from ragblame.errors import InputError
from ragblame.plugin.host_context import current_tree
from ragblame.plugin.run_tree import RunTree
from ragblame.trace_records import TraceStatus

KEEP_TAG: Final = "ragblame:keep"  # on a root run: record it whatever the rate
IGNORE_TAG: Final = "ragblame:ignore"  # on any run: not recorded, and never the answer
ALWAYS_KEPT: Final = (TraceStatus.ERROR, TraceStatus.CANCELLED, TraceStatus.ABANDONED)
_MAX_REASON: Final = 200  # code points

_RANDOM_BITS: Final = 62  # of a version 7 id, the lowest


def require_rate(rate: float) -> None:
    """Raises ``InputError`` unless the rate is a share from 0 to 1."""
    if not 0 <= rate <= 1:
        raise InputError(f"sample_rate is a share from 0 to 1, not {rate}: write 0.1 for a tenth")


def is_sampled(trace_id: UUID, rate: float) -> bool:
    """Whether the id falls into this share of all ids; ``rate`` from 0 (none) to 1 (all)."""
    return (trace_id.int & ((1 << _RANDOM_BITS) - 1)) < rate * (1 << _RANDOM_BITS)


def reason_to_keep(tree: RunTree, status: TraceStatus, rate: float) -> str | None:
    """Why the trace is recorded: "sampled", its status, what the host said; None: it is left out."""
    if is_sampled(tree.trace_id, rate):
        return "sampled"
    if status in ALWAYS_KEPT:
        return status.value
    return tree.kept_for


def keep(reason: str = "asked for") -> bool:
    """Record the answer that is being made in this chain step, whatever the sampling rate says.

    For a step that finds something worth a look: a failed check, a low score, a complaint. ``reason`` is
    stored with the trace (200 code points at most). Returns whether a captured run was there to keep.
    """
    tree = current_tree()
    if tree is None:
        return False
    tree.kept_for = str(reason)[:_MAX_REASON]
    return True
