"""Which model run made the answer: a chain also asks models to rewrite, route, rerank and judge.

The run is found by comparing texts, because nothing in the events says it. When only the order of runs
speaks, the choice is called ambiguous, and the trace carries that.
"""

from collections.abc import Sequence

from ragblame.plugin.run_tree import ModelRun

_MIN_OVERLAP = 3  # code points: "ok" stands inside too many texts to prove anything


def choose_model_run(runs: Sequence[ModelRun], answer: str | None) -> tuple[ModelRun | None, bool]:
    """The run that wrote ``answer`` (None: the chain's output did not say), and whether that is a guess.

    In order: equal text; the answer ends in it, starts with it or contains it (something was added); it
    contains the answer (a parser took a part, or the stream was cut); else the last successful run outside
    retrievers. Of several equally good ones the last counts: an earlier one was retried or judged wanting.
    """
    candidates = [run for run in runs if not run.in_retriever] or list(runs)
    spoken = [run for run in candidates if run.text]
    shown = (answer or "").strip()
    if shown:
        ranked = [(rank, index) for index, run in enumerate(spoken) if (rank := _likeness(run, shown))]
        if ranked:
            return spoken[max(ranked)[1]], False
    finished = [run for run in spoken if run.is_ok]
    final = [run for run in finished if not run.is_tool_call] or finished or spoken
    if final:
        return final[-1], bool(shown) or len(final) > 1
    return (candidates[-1], len(candidates) > 1) if candidates else (None, False)


def _likeness(run: ModelRun, shown: str) -> int:
    """How surely the run's text became the shown answer: 4 equal, 0 not at all."""
    said = (run.text or "").strip()
    if said == shown:
        return 4
    if said.startswith(shown):
        return 2  # a stream that was cut, however early
    if min(len(said), len(shown)) < _MIN_OVERLAP:
        return 0
    if shown.endswith(said) or shown.startswith(said) or said in shown:
        return 3
    return 2 if shown in said else 0
