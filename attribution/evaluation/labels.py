"""`ragblame eval labels`: what people found unsupported, against what we flag, with trivial scores beside it.

Every file is one study. Where it has labels, detection is measured on answers, spans and characters; where
people found nothing wrong, every flag is a false alarm; where it names gold chunks, the chunk we name is
checked. Sources, never rows, are resampled: rows of a source share their context and their luck.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from ragblame.attribution.evaluation.detection import SpanScorer
from ragblame.attribution.evaluation.evidence import Bar, Confusion, Evidence, Table
from ragblame.attribution.evaluation.label_study import LabelStudy
from ragblame.attribution.evaluation.labelled import LabelledAnswer, read_labelled, sample_sources
from ragblame.attribution.evaluation.span_scorers import TextOnly
from ragblame.attribution.support_model.examples import Part, part_of
from ragblame.errors import InputError

NAMED_PROBLEMS: Final = 5  # lines left out that are named one by one; all are counted

_RULES_NOTE: Final = (
    "The ranking score of the rules is not a probability: flagged spans come before undetermined ones "
    "before supported ones, and ties go by the share of the span's content words that no chunk holds. "
    "An answer's score is that of its worst span."
)

_PART_NOTES: Final = {
    None: "All sources of the files, whether the support model learned from them or not.",
    Part.HELD_OUT: "Only sources that the support model neither learned from nor was tuned on.",
    Part.TUNING: "Only sources that the support model was tuned on.",
    Part.TRAINING: "Only sources that the support model learned from.",
}


def evaluate(
    files: Sequence[Path],
    *,
    seed: int,
    limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    scorer: SpanScorer | None = None,
    name: str = "",
    part: Part | None = None,
) -> Evidence:
    """Measure a span scorer on labelled files.

    ``limit``: answers per file at least, by whole sources drawn with ``seed``. ``progress(what, part done)``.
    ``scorer``: None for rules alone; ``name`` is its name in the tables. ``part``: only sources that the
    support model used so; None: all, those it learned from too. Raises
    ``InputError`` for a file that cannot be read or holds no usable line, and when no file is given.
    """
    if not files:
        raise InputError("no file to evaluate: give one or more .jsonl or .jsonl.gz files with labels")
    report = progress or (lambda what, part: None)
    chosen = TextOnly() if scorer is None else scorer
    name = name or (chosen.name if isinstance(chosen, TextOnly) else "ours")
    notes = [_RULES_NOTE] if scorer is None else []
    notes.append(_PART_NOTES[part])
    tables: list[Table] = []
    confusions: list[Confusion] = []
    bars: list[Bar] = []
    taken: Counter[str] = Counter()
    for index, path in enumerate(files):
        rows, told = _read(path, seed, limit, part)
        notes.extend(told)
        dataset = _title(path, rows)
        taken[dataset] += 1
        if taken[dataset] > 1:
            dataset = f"{dataset} ({taken[dataset]})"
        study = LabelStudy(dataset, name, rows, seed)
        for done in study.score(chosen):
            report(dataset, (index + done) / len(files))
        tables.extend(study.tables())
        confusions.extend(study.confusions())
        bars.extend(study.bars())
    report("done", 1.0)
    options = [f"--seed={seed}", *([] if limit is None else [f"--limit={limit}"])]
    options.extend([] if part is None else [f"--part={part.value}"])
    return Evidence(
        name="human labels",
        command=shlex.join(["ragblame", "eval", "labels", *(path.name for path in files), *options]),
        seed=seed,
        tables=tuple(tables),
        confusions=tuple(confusions),
        bars=tuple(bars),
        notes=tuple(notes),
    )


def _read(
    path: Path, seed: int, limit: int | None, part: Part | None
) -> tuple[list[LabelledAnswer], list[str]]:
    """The rows to evaluate, and what a reader must know about the file."""
    problems: list[str] = []
    rows = read_labelled(path, lambda line, message: problems.append(f"line {line}: {message}"))
    chosen = [row for row in rows if part is None or part_of(row) is part]
    if not chosen:
        raise InputError(f"{path} has no source of the part {part}: it holds too few")
    kept = sample_sources(chosen, limit, seed=seed)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    notes = [
        f"{path.name} (sha256 {digest[:12]}…): {len(kept):,} of {len(rows):,} answers, "
        f"{len({row.source_id for row in kept}):,} sources."
    ]
    if problems:
        listed = "; ".join(problems[:NAMED_PROBLEMS])
        more = f"; and {len(problems) - NAMED_PROBLEMS} more" if len(problems) > NAMED_PROBLEMS else ""
        notes.append(f"{path.name}: {len(problems)} lines were left out: {listed}{more}.")
    return kept, notes


def _title(path: Path, rows: Sequence[LabelledAnswer]) -> str:
    datasets = {row.dataset for row in rows}
    return datasets.pop() if len(datasets) == 1 else path.name.split(".")[0]
