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
from ragblame.attribution.evaluation.span_scorers import TextRules
from ragblame.errors import InputError

NAMED_PROBLEMS: Final = 5  # lines left out that are named one by one; all are counted

_SCORE_NOTE: Final = (
    "The ranking score of the text rules is not a probability: flagged spans come before undetermined ones "
    "before supported ones, and ties go by the share of the span's content words that no chunk holds. "
    "An answer's score is that of its worst span."
)


def evaluate(
    files: Sequence[Path],
    *,
    seed: int,
    limit: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    scorer: SpanScorer | None = None,
    name: str = TextRules.name,
) -> Evidence:
    """Measure a span scorer on labelled files.

    ``limit``: answers per file at least, by whole sources drawn with ``seed``. ``progress(what, part done)``.
    ``scorer``: None for the text-only debugger as it ships; ``name`` is its name in the tables. Raises
    ``InputError`` for a file that cannot be read or holds no usable line, and when no file is given.
    """
    if not files:
        raise InputError("no file to evaluate: give one or more .jsonl or .jsonl.gz files with labels")
    report = progress or (lambda what, part: None)
    chosen = TextRules() if scorer is None else scorer
    notes = [_SCORE_NOTE] if scorer is None else []
    tables: list[Table] = []
    confusions: list[Confusion] = []
    bars: list[Bar] = []
    taken: Counter[str] = Counter()
    for index, path in enumerate(files):
        rows, told = _read(path, seed, limit)
        notes.extend(told)
        dataset = _title(path, rows)
        taken[dataset] += 1
        if taken[dataset] > 1:
            dataset = f"{dataset} ({taken[dataset]})"
        study = LabelStudy(dataset, name, rows, seed)
        for part in study.score(chosen):
            report(dataset, (index + part) / len(files))
        tables.extend(study.tables())
        confusions.extend(study.confusions())
        bars.extend(study.bars())
    report("done", 1.0)
    options = [f"--seed={seed}", *([] if limit is None else [f"--limit={limit}"])]
    return Evidence(
        name="human labels",
        command=shlex.join(["ragblame", "eval", "labels", *(path.name for path in files), *options]),
        seed=seed,
        tables=tuple(tables),
        confusions=tuple(confusions),
        bars=tuple(bars),
        notes=tuple(notes),
    )


def _read(path: Path, seed: int, limit: int | None) -> tuple[list[LabelledAnswer], list[str]]:
    """The rows to evaluate, and what a reader must know about the file."""
    problems: list[str] = []
    rows = read_labelled(path, lambda line, message: problems.append(f"line {line}: {message}"))
    kept = sample_sources(rows, limit, seed=seed)
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
