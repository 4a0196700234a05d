"""Labelled answers as the support model reads them, for fitting thresholds: how doubtful each span is."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.detection import ScoredSpan
from ragblame.attribution.evaluation.labelled import LabelledAnswer, read_labelled, sample_sources
from ragblame.attribution.support_model.choice import SHIPPED, load_support_reader
from ragblame.attribution.support_model.examples import Part, part_of
from ragblame.errors import InputError, ModelError
from ragblame.settings import load_settings


class SpanReader:
    """Reads labelled answers; ``model`` is known after the first."""

    def __init__(self, debugger: Debugger) -> None:
        """``debugger``: one that has a support model and no scorer."""
        self._debugger = debugger
        self.model = ""

    def __call__(self, row: LabelledAnswer) -> Sequence[ScoredSpan]:
        """Raises ``ModelError`` where no support model gives the spans a probability. Spans that it did not
        read, far behind in a very long answer, are left out: there is nothing to calibrate."""
        explanation = self._debugger.explain(question=row.question, chunks=row.chunks, answer=row.answer)
        if explanation.supports and all(support.probability is None for support in explanation.supports):
            raise ModelError(
                "no support model reads the answers, so there is no probability to calibrate: set "
                "RAGBLAME_SUPPORT_MODEL=shipped, or name one; the notes of `ragblame explain` say more"
            )
        found = []
        for span, support in zip(explanation.spans, explanation.supports, strict=True):
            if support.probability is None or support.model is None:
                continue
            if self.model not in ("", support.model):
                raise ModelError(f"two support models read the answers, {self.model} and {support.model}")
            self.model = support.model
            found.append(
                ScoredSpan(
                    start=span.start, end=span.end, score=support.probability, position=support.position
                )
            )
        return found


def configured_reader() -> SpanReader:
    """Reads with the support model of the settings. Raises ``ModelError``, ``MissingExtraError``."""
    model = load_support_reader(load_settings().support_model)
    return SpanReader(Debugger.text_only(support_reader=model))


def read_labels(
    files: Sequence[Path], *, part: str | None, limit: int | None, seed: int
) -> tuple[list[LabelledAnswer], list[str]]:
    """The answers of all files, and what a person must know of them.

    ``part``: only sources of this part of the support model's split. ``limit``: about so many answers of each
    file, by whole sources. Raises ``InputError`` for a file that the shipped model was trained on without
    ``part``: on sources it knows by heart it misses less than it will, so the promise would not hold.
    """
    if part is not None and part not in set(Part):
        raise InputError(f"there is no part {part!r}: choose one of {', '.join(Part)}")
    if part is None and load_settings().support_model == SHIPPED:
        for path in files:
            if _digest(path) in trained_on():
                raise InputError(
                    f"the shipped support model was trained on a part of {path}: give --part tuning, whose "
                    "sources it has not seen"
                )
    rows: list[LabelledAnswer] = []
    problems: list[str] = []
    for path in files:
        found = read_labelled(path, lambda line, what: problems.append(f"line {line}: {what}"))
        mine = [row for row in found if part is None or part_of(row) == part]
        rows += sample_sources(mine, limit, seed=seed) if mine else []
    if not rows:
        raise InputError(f"these files have no source of the part {part}: give others, or another part")
    told = [f"{len(problems)} lines were left out, first {problems[0][:200]}"] if problems else []
    return rows, told


def trained_on() -> frozenset[str]:
    """SHA-256 of the files that the shipped support model was trained on; empty where it is not installed."""
    from ragblame.attribution.support_model.weights import CARD
    from ragblame.attribution.support_model.weights import SHIPPED as FOLDER

    try:
        card = json.loads((FOLDER / CARD).read_text("utf-8"))
    except FileNotFoundError:
        return frozenset()
    return frozenset(card.get("files", {}).values())


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}): give a .jsonl or .jsonl.gz file") from error
