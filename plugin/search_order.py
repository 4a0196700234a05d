"""Which searches fed the answer, in an order that is the same for every run of the same chain.

Searches count in the order they began, but those that a RunnableParallel runs side by side go by the keys it
gave them. A chunk's place among all chunks then means the same today and tomorrow.
"""

from typing import Final

from ragblame.plugin.run_tree import RunTree, Search

_MAX_DEPTH: Final = 200  # runs inside runs; deeper than any chain is built


def ordered_searches(tree: RunTree) -> list[Search]:
    """The outermost searches of the tree in a stable order, then what the host told of.

    An attempt that failed as a whole is left out, with what it found, when another one found something.
    """
    outer = {run: search for run, search in list(tree.searches.items()) if not search.is_nested}
    if tree.failed:
        lasting = {run: search for run, search in outer.items() if tree.failed.isdisjoint(_path(run, tree))}
        if any(search.passages for search in lasting.values()):
            outer = lasting
    if len(outer) > 1 and tree.branches:
        outer = {run: outer[run] for run in _sorted(list(outer), tree)}
    return [*outer.values(), *list(tree.told)]


def _sorted(runs: list[int], tree: RunTree) -> list[int]:
    """Depth first: at each fork by key where all sides have one, else by the first search on each side."""
    paths = {run: _path(run, tree) for run in runs}

    def place(group: list[int], depth: int) -> list[int]:
        if len(group) < 2 or depth > _MAX_DEPTH:
            return group
        sides: dict[int, list[int]] = {}
        for run in group:  # in order of start, so the sides are, too
            sides.setdefault(paths[run][depth] if depth < len(paths[run]) else run, []).append(run)
        order = list(sides)
        if all(side in tree.branches for side in sides):
            order.sort(key=lambda side: tree.branches[side])
        return [run for side in order for run in place(sides[side], depth + 1)]

    return place(runs, 0)


def _path(run: int, tree: RunTree) -> list[int]:
    """From the root's child down to the run."""
    path = []
    at: int | None = run
    while at is not None and at in tree.parents:
        path.append(at)
        at = tree.parents[at]
    return path[::-1]
