"""`ragblame eval world`: attribution and verdicts against the truth, in a world where the truth can be had.

It exists to convince a sceptic: the model answers, interventions say what caused each value, and every method
and every verdict is held against that, never against a score. The shipped model is what the bars are about;
further training seeds show whether it was luck.
"""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ragblame.attribution.evaluation import world_methods, world_sanity, world_tables
from ragblame.attribution.evaluation.accuracy import evidence_of_model
from ragblame.attribution.evaluation.evidence import Bar, Evidence, Table
from ragblame.attribution.evaluation.findings import Findings
from ragblame.attribution.evaluation.study import Observation, study

COUNT = 200  # items of each cell
QUICK_COUNT = 20
SANITY_ITEMS = 60
QUICK_SANITY_ITEMS = 10

Progress = Callable[[str, float], None]


def evaluate(
    models: Sequence[Path | None],
    *,
    seed: int = 0,
    is_quick: bool = False,
    progress: Progress | None = None,
) -> Evidence:
    """Measure ``models[0]`` (None: the shipped one), with the others as further training seeds.

    Raises ``ModelError`` for a folder that holds no model of this world.
    """
    report = progress or (lambda what, part: None)
    count = QUICK_COUNT if is_quick else COUNT
    rows: dict[str, list[Observation]] = {}
    for folder in models:
        observed = study(folder, seed=seed, count=count, with_captum=not rows, progress=report)
        rows[observed[0].model] = observed
    first = next(iter(rows.values()))
    report("the model itself", 0.0)
    parts = [
        evidence_of_model(models[0], seed=seed + 1, n=20 if is_quick else 200),
        world_tables.describe_cells(first, count=count),
        world_tables.right_chunk(first, seed=seed),
        world_methods.compare(first, seed=seed),
        world_tables.context_or_memory(first, seed=seed),
        world_tables.verdicts(first, seed=seed),
        world_tables.flags(first, seed=seed),
        world_methods.faithfulness(first, seed=seed),
        world_tables.repetitions(first, seed=seed),
        world_tables.flips(first, seed=seed),
        world_tables.copies_share_alike(first, seed=seed),
        world_sanity.sanity(
            first, models[0], seed=seed, most=QUICK_SANITY_ITEMS if is_quick else SANITY_ITEMS
        ),
    ]
    if len(rows) > 1:
        parts.append(_seeds(rows, seed=seed))
    report("done", 1.0)
    command = ["ragblame", "eval", "world", *(["--quick"] if is_quick else []), "--seed", str(seed)]
    for folder in models[1:]:
        command += ["--model", folder.name if folder is not None else ""]
    return Evidence(
        name="known causes" + (", quick" if is_quick else ""),
        command=shlex.join(command),
        seed=seed,
        tables=tuple(table for part in parts for table in part.tables),
        confusions=tuple(one for part in parts for one in part.confusions),
        bars=tuple(one for part in parts for one in part.bars),
        notes=tuple(note for part in parts for note in part.notes),
    )


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
        *world_tables.right_chunk(rows, seed=seed).bars,
        *world_tables.context_or_memory(rows, seed=seed).bars,
        *world_tables.verdicts(rows, seed=seed).bars,
        *world_tables.flags(rows, seed=seed).bars,
        *world_tables.flips(rows, seed=seed).bars,
        *world_tables.copies_share_alike(rows, seed=seed).bars,
    ]


def _shown(bar: Bar) -> str:
    if bar.low is None or bar.high is None:
        return f"{bar.value:.3f}"
    return f"{bar.value:.3f} ({bar.low:.3f} to {bar.high:.3f})"


def quick_bars(evidence: Evidence) -> Evidence:
    """The same measurement held to the looser bars of the quick variant, which has a tenth of the items."""
    return replace(
        evidence,
        bars=tuple(
            replace(bar, bound=QUICK_BOUNDS[bar.name]) for bar in evidence.bars if bar.name in QUICK_BOUNDS
        ),
    )


QUICK_BOUNDS: dict[str, float] = {}
