"""`ragblame eval world`: attribution and verdicts against the truth, in a world where the truth can be had.

It exists to convince a sceptic: the model answers, interventions say what caused each value, and every method
and every verdict is held against that, never against a score. The shipped model is what the bars are about;
further training seeds show whether it was luck.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ragblame.attribution.evaluation import (
    world_chunks,
    world_flips,
    world_methods,
    world_sanity,
    world_verdicts,
)
from ragblame.attribution.evaluation.accuracy import evidence_of_model
from ragblame.attribution.evaluation.evidence import Bar, Evidence, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.observations import Observation
from ragblame.attribution.evaluation.study import study

COUNT = 200  # items of each cell
QUICK_COUNT = 12
SANITY_ITEMS = 60
QUICK_SANITY_ITEMS = 8
MODEL_PROMPTS = 200  # per row of the table on the model itself
QUICK_MODEL_PROMPTS = 10

# Bars of the quick variant, for a sixteenth of the items: what cannot be luck, not what is aimed at.
QUICK_BOUNDS = {
    "exact match: grounded, 1-8 chunks": 0.85,
    "exact match: memory, 0 chunks": 0.85,
    "exact match: memory, 3 chunks": 0.85,
    "items as designed in the smallest cell": QUICK_COUNT / 3,
    "top-1 on single-support cells (1, 10, 11, 12)": 0.90,
    "top-1 on trap and conflict cells (5, 6)": 0.85,
    "both chunks found on duplicates and two-hop (2, 3, 4)": 0.85,
    "context or memory: macro-F1, cells 1-10": 0.80,
    "verdicts: 4-way macro-F1": 0.75,
    "unsupported spans: average precision": 0.90,
    "held-out LDS on cells without redundancy": 0.75,
    "editing the top chunk flips the answer": 0.80,
    "editing another chunk flips the answer": 0.15,
    "duplicates: median relative difference of shares": 0.15,
    "shares of a weight-shuffled model: size of the correlation": 0.5,
    "an irrelevant chunk's share as part of the reliance (median)": 0.10,
}

Progress = Callable[[str, float], None]


def evaluate(
    models: Sequence[Path | None],
    *,
    seed: int = 0,
    is_quick: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Measure ``models[0]`` (None: the shipped one), with the others as further training seeds.

    ``is_quick``: few items, no captum, and the looser ``QUICK_BOUNDS``; for continuous integration.

    Raises ``ModelError`` for a folder that holds no model of this world.
    """
    report = progress or (lambda what, part: None)
    count = QUICK_COUNT if is_quick else COUNT
    rows: dict[str, list[Observation]] = {}
    for folder in models:
        observed = study(
            folder,
            seed=seed,
            count=count,
            with_captum=not rows and not is_quick,
            with_models=not rows,  # the methods are compared on the first model alone
            progress=report,
        )
        rows[observed[0].model] = observed
    first = next(iter(rows.values()))
    report("the model itself", 0.0)
    parts = [
        evidence_of_model(models[0], seed=seed + 1, n=QUICK_MODEL_PROMPTS if is_quick else MODEL_PROMPTS),
        world_chunks.describe_cells(first, count=count),
        world_chunks.right_chunk(first, seed=seed),
        world_methods.compare(first, seed=seed),
        world_verdicts.context_or_memory(first, seed=seed),
        world_verdicts.verdicts(first, seed=seed),
        world_verdicts.flags(first, seed=seed),
        world_methods.faithfulness(first, seed=seed),
        world_verdicts.repetitions(first, seed=seed),
        world_flips.flips(first, seed=seed),
        world_flips.copies_share_alike(first, seed=seed),
        world_sanity.sanity(
            first, models[0], seed=seed, most=QUICK_SANITY_ITEMS if is_quick else SANITY_ITEMS
        ),
    ]
    if len(rows) > 1:
        parts.append(_seeds(rows, seed=seed))
    bars = tuple(one for part in parts for one in part.bars)
    report("done", 1.0)
    command = ["ragblame", "eval", "world", *(["--quick"] if is_quick else []), "--seed", str(seed)]
    for folder in models[1:]:
        if folder is not None:
            command += ["--model", f"{folder.parent.name}/{folder.name}"]
    return Evidence(
        name="known causes" + (", quick" if is_quick else ""),
        command=shlex.join(command),
        seed=seed,
        tables=tuple(table for part in parts for table in part.tables),
        confusions=tuple(one for part in parts for one in part.confusions),
        bars=_quick(bars) if is_quick else bars,
        notes=tuple(note for part in parts for note in part.notes),
    )


def _quick(bars: Sequence[Bar]) -> tuple[Bar, ...]:
    """The bars that so few items can be held to, with the bounds of the quick variant."""
    return tuple(replace(bar, bound=QUICK_BOUNDS[bar.name]) for bar in bars if bar.name in QUICK_BOUNDS)


def _seeds(rows: dict[str, list[Observation]], *, seed: int) -> Findings:
    """The bars again for every training seed, and over all of them with seeds resampled before items."""
    everything = [one for observed in rows.values() for one in observed]
    by_model = {name: _bars(observed, seed=seed) for name, observed in rows.items()}
    pooled = _bars(everything, seed=seed)
    names = [bar.name for bar in pooled]
    table = []
    for index, name in enumerate(names):
        cells = [_shown(bars[index]) for bars in by_model.values()]
        table.append((name, *cells, _shown(pooled[index])))
    return Findings(
        tables=[
            Table(
                title="Training seeds",
                columns=("figure", *by_model, "all, seeds resampled"),
                rows=tuple(table),
                note="Models of the same script and other seeds; each was labelled by its own behaviour.",
            )
        ]
    )


def _bars(rows: Sequence[Observation], *, seed: int) -> list[Bar]:
    return [
        *world_chunks.right_chunk(rows, seed=seed).bars,
        *world_verdicts.context_or_memory(rows, seed=seed).bars,
        *world_verdicts.verdicts(rows, seed=seed).bars,
        *world_verdicts.flags(rows, seed=seed).bars,
        *world_flips.flips(rows, seed=seed).bars,
        *world_flips.copies_share_alike(rows, seed=seed).bars,
    ]


def _shown(bar: Bar) -> str:
    if bar.low is None or bar.high is None:
        return f"{bar.value:.3f}"
    return f"{bar.value:.3f} ({bar.low:.3f} to {bar.high:.3f})"
