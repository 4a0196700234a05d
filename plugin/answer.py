"""Which model run made the answer: a chain also asks models to rewrite, route, rerank and judge.

The run is found by comparing texts, because nothing in the events says it. When only the order of runs
speaks, the choice is called ambiguous, and the trace carries that.
"""

from collections.abc import Collection, Sequence
from typing import Final

from ragblame.plugin.answer_map import find_literal
from ragblame.plugin.run_tree import ModelRun

_MIN_OVERLAP: Final = 3  # code points: "ok" stands inside too many texts to prove anything
_MIN_PART: Final = 0.25  # of the answer, for a text that stands inside it: a rewriter's "port" proves nothing
_MIN_COMMON_WORDS: Final = 0.6  # of the answer's words, when a later step edited it
_MAX_COMPARED: Final = 100_000  # code points looked at word by word
_HEAD: Final = 200  # code points of a chunk that tell whether it stands in a prompt


def choose_model_run(
    runs: Sequence[ModelRun], answer: str | None, chunks: Collection[str] = ()
) -> tuple[ModelRun | None, bool]:
    """The run that wrote ``answer`` (None: the chain's output did not say), and whether that is a guess.

    In order: equal text; the answer ends in it, starts with it or contains it (something was added); it
    contains the answer (a parser took a part, or the stream was cut); most words in common (it was edited);
    else the last successful run outside retrievers. Of several equally good ones a run that had some of the
    ``chunks`` in its prompt counts, then the last: an earlier one was retried or judged wanting.
    """
    candidates = [run for run in runs if not run.in_retriever] or list(runs)
    spoken = [run for run in candidates if run.text]
    shown = (answer or "").strip()
    if shown:
        likely = [(rank, run) for run in spoken if (rank := _likeness(run, shown))]
        if likely:
            best = max(rank for rank, _ in likely)
            return _last_with_chunks([run for rank, run in likely if rank == best], chunks), False
    finished = [run for run in spoken if run.is_ok]
    final = [run for run in finished if not run.is_tool_call] or finished or spoken
    if final:
        return _last_with_chunks(final, chunks), bool(shown) or len(final) > 1
    return (candidates[-1], len(candidates) > 1) if candidates else (None, False)


def _last_with_chunks(runs: Sequence[ModelRun], chunks: Collection[str]) -> ModelRun:
    if len(runs) > 1 and chunks:
        heads = [head for text in chunks if (head := text.strip()[:_HEAD])]
        for run in reversed(runs):
            if any(head in message.text for message in run.prompt for head in heads):
                return run
    return runs[-1]


def _likeness(run: ModelRun, shown: str) -> int:
    """How surely the run's text became the shown answer: 5 equal, 0 not at all."""
    said = (run.text or "").strip()
    if not said:
        return 0
    if said == shown:
        return 5
    if said.startswith(shown):
        return 3  # a stream that was cut, however early
    if min(len(said), len(shown)) >= _MIN_OVERLAP:
        if said in shown and len(said) >= _MIN_PART * len(shown):
            return 4
        if shown in said or find_literal(shown, said) is not None:
            return 3
    words = shown[:_MAX_COMPARED].split()
    known = set(said[:_MAX_COMPARED].split())
    common = sum(word in known for word in words)
    return 2 if len(words) > 1 and common >= _MIN_COMMON_WORDS * len(words) else 0
