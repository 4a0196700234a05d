"""Which coalition's prompt goes on from which other one's, and in which order: how their work is shared.

In a causal model the keys and values of a token depend on nothing that stands later, so two prompts that
begin alike share them. Prompts are compared as token ids, not as chunks: whatever a tokenizer does at a
chunk's border, and however a list is numbered anew, a shared run of ids is exact. No model is touched here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

MIN_SHARED = (
    8  # tokens; a shorter run is computed anew in each row rather than adding a row all others wait for
)
FREE_PART = 2  # with less than this part of the memory free, the deepest rows go first, which frees it


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """One prompt: its first ``start`` tokens come from its parent and that one's parents, the rest is new."""

    prompt: tuple[int, ...]  # token ids
    parent: "Row | None"
    start: (
        int  # tokens taken over, in [0, len(prompt) - 1]: the last prompt token is needed for its prediction
    )
    children: list["Row"] = field(default_factory=list)
    chain: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # slots of [0, start)
    own: NDArray[np.int64] = field(
        default_factory=lambda: np.empty(0, np.int64)
    )  # slots of [start, start + kept)
    open: int = 0  # children whose own subtrees are not finished

    @property
    def kept(self) -> int:
        """How many of the computed tokens a child goes on from."""
        return max((child.start for child in self.children), default=self.start) - self.start


def plan(prompts: Sequence[tuple[int, ...]]) -> list[Row]:
    """Rows of a prefix tree, parents before children; ``prompts`` are distinct and not empty.

    Of prompts that begin alike the shortest becomes the row that the others branch from: of a coalition and
    all that add later chunks to it, this is the coalition itself. So every row is its last chunk plus
    question and answer, and rows of one length fill a batch. Tokens computed: those of the trie over the
    prompts, but for runs shorter than ``MIN_SHARED``.
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    ids = np.full((len(prompts), int(lengths.max(initial=0))), -1, np.int64)
    for number, prompt in enumerate(prompts):
        ids[number, : len(prompt)] = prompt
    rows: list[Row] = []

    def add(number: int, parent: Row | None, start: int) -> Row:
        row = Row(prompt=tuple(prompts[number]), parent=parent, start=start)
        if parent is not None:
            parent.children.append(row)
        rows.append(row)
        return row

    groups: list[tuple[NDArray[np.int64], Row | None, int]] = []
    if len(prompts):
        groups.append((np.arange(len(prompts)), None, 0))
    while groups:
        members, parent, start = groups.pop()
        shortest = int(members[np.argmin(lengths[members])])
        others = members[members != shortest]
        if not len(others):
            add(shortest, parent, start)
            continue
        end = int(lengths[shortest]) - 1
        differs = ids[others, : end + 1] != ids[shortest, : end + 1]
        differs[:, end] = True  # the last prompt token is never taken over
        shared = differs.argmax(axis=1)
        common = int(shared.min())
        if common - start >= MIN_SHARED:
            row = add(shortest, parent, start)
            groups.extend((part, row, depth) for part, depth in _branches(ids, others, shared))
        elif common == end:
            add(shortest, parent, start)
            groups.append((others, parent, start))
        else:  # too little in common to wait for each other
            alike = np.full(len(members), common)
            groups.extend((part, parent, start) for part, _ in _branches(ids, members, alike))
    return rows


def _branches(
    ids: NDArray[np.int64], members: NDArray[np.int64], shared: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Members that leave a row at the same place by the same token, with that place."""
    ways: dict[tuple[int, int], list[int]] = defaultdict(list)
    for member, depth in zip(members.tolist(), shared.tolist(), strict=True):
        ways[depth, int(ids[member, depth])].append(member)
    for (depth, _), part in ways.items():
        yield np.array(part), depth


def longest_chain(rows: Sequence[Row]) -> int:
    """Tokens that must be kept at once to walk the tree one row at a time: the least that will do."""
    kept: dict[int, int] = {}
    for row in rows:  # parents first
        kept[id(row)] = row.kept + (kept[id(row.parent)] if row.parent is not None else 0)
    return max(kept.values(), default=0)


class Walk:
    """Hands out batches of rows whose parents are done, and the slots in which their tokens are kept.

    Rows that nobody waits for go as soon as they fill a batch, so that what they began with is given back
    and its memory used again; else rows that others wait for, in waves. When memory runs short, finished
    ends give theirs back and the walk goes depth first, one row at a time: ``longest_chain`` slots are
    enough, fewer raise ``ValueError``.
    """

    def __init__(self, rows: Sequence[Row], slots: int) -> None:
        """``slots``: tokens that may be kept at once; slot numbers count from 1, 0 stands for padding."""
        chain = longest_chain(rows)
        if slots < chain:
            raise ValueError(f"{slots} slots cannot hold a chain of {chain} tokens")
        self._reserve = 0 if slots >= sum(row.kept for row in rows) else chain
        self._slots = slots
        self._free = list(range(slots, 0, -1))
        self._ends: list[Row] = []
        self._inner: list[Row] = []
        for row in rows:
            row.open = len(row.children)
            if row.parent is None:
                self._ready(row)

    def take(self, can_join: Callable[[Sequence[Row], Row], bool]) -> list[Row]:
        """The next batch, empty when all rows are done; then ``finish`` or ``postpone`` it.

        ``can_join(batch, row)`` bounds a batch; rows come in the order of their number of computed tokens.
        """
        batch = (
            self._full_batch(can_join)
            or self._inner_batch(can_join)
            or self._batch(_in_order(self._ends), can_join)
            or self._inner[-1:]
        )
        chosen = set(map(id, batch))
        for ready in (self._inner, self._ends):
            ready[:] = [row for row in ready if id(row) not in chosen]
        for row in batch:
            row.own = np.array([self._free.pop() for _ in range(row.kept)], np.int64)
        return batch

    def postpone(self, rows: Sequence[Row]) -> None:
        """Take back rows of the last batch that could not be computed."""
        for row in rows:
            self._free.extend(row.own.tolist())
            self._ready(row)

    def finish(self, batch: Sequence[Row]) -> None:
        """These rows are computed, their tokens kept: children can go on, finished ends give slots back."""
        for row in batch:
            for child in row.children:
                child.chain = np.concatenate([row.chain, row.own[: child.start - row.start]])
                self._ready(child)
            if not row.children:
                self._close(row)

    def _ready(self, row: Row) -> None:
        (self._inner if row.children else self._ends).append(row)

    def _close(self, row: Row | None) -> None:
        while row is not None:
            self._free.extend(row.own.tolist())
            row = row.parent
            if row is not None:
                row.open -= 1
                if row.open:
                    return

    def _full_batch(self, can_join: Callable[[Sequence[Row], Row], bool]) -> list[Row]:
        """Ends that another like the last of them could not join; empty when no batch is full."""
        rest = _in_order(self._ends)
        while rest:
            batch = self._batch(rest, can_join)
            if not can_join(batch, batch[-1]):
                return batch
            rest = rest[len(batch) :]
        return []

    def _inner_batch(self, can_join: Callable[[Sequence[Row], Row], bool]) -> list[Row]:
        is_short = len(self._free) < self._slots // FREE_PART
        batch = self._batch(_in_order(self._inner, deepest=is_short), can_join)
        spare = len(self._free) - self._reserve
        while batch and sum(row.kept for row in batch) > spare:
            batch.pop()
        return batch

    @staticmethod
    def _batch(rows: Sequence[Row], can_join: Callable[[Sequence[Row], Row], bool]) -> list[Row]:
        batch: list[Row] = []
        for row in rows:
            if batch and not can_join(batch, row):
                break
            batch.append(row)
        return batch


def _in_order(rows: Sequence[Row], *, deepest: bool = False) -> list[Row]:
    """By computed tokens, so that rows of one length stand together; then by those before them."""
    sign = -1 if deepest else 1
    return sorted(rows, key=lambda row: (len(row.prompt) - row.start, sign * row.start))
