"""One model under study: every item answered, its cause found by intervention, and what ragblame says about
it.

It exists to keep measuring apart from counting: this file asks the model and the product, and hands on plain
arrays; ``known_cause.py`` computes every figure from them. Items are independent, so a study runs in as many
processes as there are cores.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ragblame.attribution.evaluation.cells import Cell, Item, draw_item
from ragblame.attribution.evaluation.contenders import contenders
from ragblame.attribution.evaluation.interventions import Behaviour, edited, final_value, observe
from ragblame.attribution.evaluation.observations import Judged, Observation
from ragblame.attribution.methods.shapley import exact_shapley
from ragblame.attribution.world.facts import Claim
from ragblame.records import Explanation, Method, Span, SpanKind, SupportState, VerdictKind

if TYPE_CHECKING:
    from ragblame.attribution.debugger import Debugger

BLOCK = 20  # items of each cell that one task takes
CAPTUM_EVERY = 25  # of so many items of a cell, captum's own methods get one: they take seconds each

Progress = Callable[[str, float], None]


def study(
    folder: Path | None,
    *,
    seed: int,
    count: int,
    cells: Sequence[Cell] = tuple(Cell),
    with_captum: bool = True,
    with_models: bool = True,
    processes: int | None = None,
    progress: Progress = lambda what, part: None,
) -> list[Observation]:
    """Observe ``count`` items of every cell under one model.

    ``folder``: of a training run, None for the shipped model. ``with_captum``: captum's own methods too, on
    one item in ``CAPTUM_EVERY``. ``with_models``: the other methods that ask the model (gradients, attention)
    too, about half of the time. ``processes``: None for one a core.
    """
    name = model_name(folder)
    blocks = [range(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    found: list[Observation] = []
    workers = min(processes or os.cpu_count() or 1, len(blocks))
    if workers == 1:
        for done, block in enumerate(blocks, start=1):
            found += _observe_block(folder, name, seed, tuple(block), tuple(cells), with_captum, with_models)
            progress(f"model {name}", done / len(blocks))
    else:
        # Not forked: torch's threads do not survive a fork.
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            tasks = [
                pool.submit(
                    _observe_block, folder, name, seed, tuple(block), tuple(cells), with_captum, with_models
                )
                for block in blocks
            ]
            for done, task in enumerate(as_completed(tasks), start=1):
                found += task.result()
                progress(f"model {name}", done / len(blocks))
    order = {cell: index for index, cell in enumerate(Cell)}
    return sorted(found, key=lambda one: (order[one.item.cell], one.item.number))


def model_name(folder: Path | None) -> str:
    """What tables call a model: training runs write DIR/model, and ``make seeds`` names DIR after the
    seed."""
    if folder is None:
        return "shipped"
    run = folder.parent.name if folder.name == "model" else folder.name
    return f"seed {run}" if run.isdigit() else run


def _observe_block(
    folder: Path | None,
    name: str,
    seed: int,
    numbers: Sequence[int],
    cells: Sequence[Cell],
    with_captum: bool,
    with_models: bool,
) -> list[Observation]:
    """The unit of work of one process: all cells of these numbers."""
    import torch

    from ragblame.attribution.debugger import Debugger
    from ragblame.attribution.world.answering import generate

    torch.set_num_threads(1)  # matrices this small only lose by being shared between threads
    debugger = Debugger.from_pretrained(None if folder is None else str(folder), is_own_model=True, threads=1)
    scorer = debugger.scorer
    assert scorer is not None

    def write(prompts: Sequence[str]) -> list[str]:
        return generate(scorer.model, scorer.tokenizer, prompts)

    items = [draw_item(cell, number, seed=seed) for cell in cells for number in numbers]
    behaviours = observe(items, write, seed=seed)
    found: list[Observation] = [
        _explain(debugger, name, item, behaviour, seed, with_captum, with_models)
        for item, behaviour in zip(items, behaviours, strict=True)
        if behaviour.is_labelled
    ]
    lost = [
        _unlabelled(name, item, behaviour)
        for item, behaviour in zip(items, behaviours, strict=True)
        if not behaviour.is_labelled
    ]
    return [*_flipped(found, write, seed), *lost]


def _unlabelled(name: str, item: Item, behaviour: Behaviour) -> Observation:
    """An item whose behaviour gives no label: counted, never used."""
    nothing = np.full(1 << len(item.chunks), np.nan)
    return Observation(
        model=name,
        item=item,
        behaviour=behaviour,
        is_supported=False,
        values=nothing,
        repeated=None,
        tokens=0,
        shares=np.full(len(item.chunks), np.nan),
        noise=np.nan,
        judged=Judged(
            verdict=VerdictKind.UNDETERMINED,
            cause=None,
            support=SupportState.UNCLEAR,
            is_flagged=False,
            is_exact=False,
        ),
    )


def _explain(
    debugger: "Debugger",
    name: str,
    item: Item,
    behaviour: Behaviour,
    seed: int,
    with_captum: bool,
    with_models: bool,
) -> Observation:
    explanation = debugger.explain(
        question=item.question.text, chunks=[chunk.text for chunk in item.chunks], answer=behaviour.answer
    )
    table = explanation.coalitions
    assert table is not None, f"no shares for {item.prompt!r}: {explanation.notes}"
    tokens = claim_tokens(behaviour, table.token_starts, table.token_ends)
    log_probs = np.asarray(table.log_probs, dtype=np.float64)
    values = log_probs[:, tokens].sum(axis=1)
    repeated = None
    if behaviour.repeated is not None:
        repeated = log_probs[:, _tokens(table.token_starts, table.token_ends, behaviour.repeated)].sum(axis=1)
    shapley = next(one for one in explanation.attributions if one.method is Method.SHAPLEY)
    observation = Observation(
        model=name,
        item=item,
        behaviour=behaviour,
        is_supported=_is_supported(item, behaviour),
        values=values,
        repeated=repeated,
        tokens=len(tokens),
        shares=exact_shapley(values),
        noise=float(shapley.noise_floor or 0.0),
        judged=_judged(explanation, behaviour.ranges[-1]),
        again=None if behaviour.repeated is None else _judged(explanation, behaviour.repeated).verdict,
    )
    is_slow = with_captum and item.number % CAPTUM_EVERY == 0
    assert debugger.scorer is not None
    observation.others.update(
        contenders(
            debugger.scorer,
            explanation,
            observation,
            claim_spans(behaviour),
            seed=seed,
            with_models=with_models,
            is_slow=is_slow,
        )
    )
    return observation


def claim_spans(behaviour: Behaviour) -> tuple[Span, ...]:
    """The claim's ranges as spans of their own: methods are judged on the value, not on how answers are
    cut."""
    return tuple(
        Span(index=index, start=start, end=end, kind=SpanKind.CLAUSE, sentence_start=start, sentence_end=end)
        for index, (start, end) in enumerate(behaviour.ranges)
    )


def claim_tokens(behaviour: Behaviour, starts: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The answer tokens that carry the claim; ``starts`` and ``ends``: code points of each token."""
    return [token for bounds in behaviour.ranges for token in _tokens(starts, ends, bounds)]


def _tokens(starts: Sequence[int], ends: Sequence[int], bounds: tuple[int, int]) -> list[int]:
    places = zip(starts, ends, strict=True)
    return [index for index, (start, end) in enumerate(places) if start < bounds[1] and end > bounds[0]]


def _is_supported(item: Item, behaviour: Behaviour) -> bool:
    if behaviour.entity != item.claim.entity:  # two hops: it went on to another entity
        return False
    claim = Claim(item.claim.entity, item.claim.attribute)
    return any(chunk.value(claim) == behaviour.value for chunk in item.chunks)


def _judged(explanation: Explanation, bounds: tuple[int, int]) -> Judged:
    """What was said of the span that overlaps these code points of the answer most."""
    start, end = bounds

    def overlap(span: Span) -> int:
        return min(span.end, end) - max(span.start, start)

    span = max(explanation.spans, key=overlap)
    verdict = next(one for one in explanation.verdicts if one.span == span.index)
    support = next(one for one in explanation.supports if one.span == span.index)
    return Judged(
        verdict=verdict.verdict,
        cause=verdict.cause,
        support=support.state,
        is_flagged=verdict.is_flagged,
        is_exact=(span.start, span.end) == (start, end),
    )


def _flipped(
    found: Sequence[Observation], write: Callable[[Sequence[str]], list[str]], seed: int
) -> Iterator[Observation]:
    """The flip test (SCIENCE 7.5): edit the top chunk, edit another one, and see whether the value stays.

    The other one is drawn among the chunks that are no cause by behaviour: of two hops both are, and a cause
    that is edited must change the answer.
    """
    rng = np.random.default_rng(seed)
    planned: list[tuple[Observation, list[int]]] = []
    for one in found:
        chosen: list[int] = []
        if one.behaviour.is_used:
            chosen = [int(np.argmax(one.shares))]
            rest = sorted(set(range(len(one.shares))) - {*chosen, *one.causes})
            chosen += [int(rng.choice(rest))] if rest else []
        planned.append((one, chosen))
    prompts = [edited(one.item, place, seed=seed).prompt for one, chosen in planned for place in chosen]
    answers = iter(write(prompts))
    for one, chosen in planned:
        flips = [final_value(one.item, next(answers)) != one.behaviour.value for _ in chosen]
        yield replace(
            one,
            flips_top=flips[0] if flips else None,
            flips_other=flips[1] if len(flips) > 1 else None,
        )
