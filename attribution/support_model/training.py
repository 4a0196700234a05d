"""Trains the reader on labelled answers; the committed recipe of the shipped weights.

Run: python -m ragblame.attribution.support_model.training FILE.jsonl.gz … --out FOLDER
Tokens and answers are learned together (binary cross-entropy of both); weights are averaged over the steps.
Sources that are held out are not read, those for tuning are only measured.
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ragblame.attribution.evaluation.labelled import LabelledAnswer, read_labelled
from ragblame.attribution.support_model.averaging import Average
from ragblame.attribution.support_model.cutting import Cutter, Reading, Run
from ragblame.attribution.support_model.encoder import LAYERS, Encoder
from ragblame.attribution.support_model.examples import SPLIT, Example, Part, example, examples, part_of
from ragblame.attribution.support_model.network import Batch, Reader
from ragblame.attribution.support_model.weights import changes_of, fresh, load_learned, save

EPOCHS: Final = 4
BATCH: Final = 12  # answers
RATE: Final = 6e-4
WARM: Final = 0.06  # part of the steps
ANSWER_WEIGHT: Final = 0.5
TRAINING_EVIDENCE: Final = 1024  # tokens: longer evidence is cut short while learning


def train(
    files: Sequence[Path],
    out: Path,
    *,
    epochs: int,
    seed: int,
    limit: int | None = None,
    encoder: Path | None = None,
) -> None:
    """Train and write the averaged weights after every epoch.

    ``encoder``: a run of ``adapting.py`` whose encoder is read with, None for the published one.
    """
    torch.manual_seed(seed)
    learning, tuning = rows_of(files, limit)
    parts, changes = (fresh(), None) if encoder is None else (load_learned(encoder)[0], changes_of(encoder))
    reader, cuts = Reader(parts.encoder.width), Cuts(parts.tokenizer)
    shelf = Shelf(parts.encoder)
    _standardise(reader, [cuts.reading(example(row)) for row in learning])
    optimiser = torch.optim.AdamW(reader.parameters(), lr=RATE, weight_decay=0.05, betas=(0.9, 0.98))
    per_epoch = -(-len(examples(learning, random.Random(seed))) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate_at(per_epoch * epochs))
    average = Average(reader)
    step, started = 0, time.perf_counter()
    for epoch in range(epochs):
        draw = random.Random(f"{seed}/{epoch}")
        cut = [(item, cuts.reading(item)) for item in examples(learning, draw)]
        reader.train()
        losses = []
        for some in _batches(cut, draw):
            loss = loss_of(reader, shelf.batch([reading for _, reading in some]), some)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            average.add(step)
            losses.append(float(loss.detach()))
            if step % 50 == 0:
                done = time.perf_counter() - started
                print(f"epoch {epoch} step {step} loss {np.mean(losses[-50:]):.4f} {done:.0f} s", flush=True)
        average.swap()
        measured = measure(reader.eval(), shelf.batch, cuts, tuning)
        print(json.dumps({"epoch": epoch, **measured}), flush=True)
        save(reader, out / f"epoch-{epoch}", card_of(files, seed, epoch, epochs, measured), changes)
        average.swap()
    shutil.copytree(out / f"epoch-{epochs - 1}", out / "last", dirs_exist_ok=True)


def rows_of(
    files: Sequence[Path], limit: int | None = None
) -> tuple[list[LabelledAnswer], list[LabelledAnswer]]:
    """Answers to learn from and to tune on; those of held-out sources are let go at once."""
    rows = [row for path in files for row in read_labelled(path, lambda line, message: None)]
    learning = [row for row in rows if part_of(row) is Part.TRAINING]
    return learning[:limit], [row for row in rows if part_of(row) is Part.TUNING][:limit]


class Cuts:
    """Answers and chunks as cut, each once."""

    def __init__(self, tokenizer: Any) -> None:
        self._cutter = Cutter(tokenizer, max_evidence=TRAINING_EVIDENCE)
        self._readings: dict[Example, Reading] = {}

    def reading(self, item: Example) -> Reading:
        """As cut; the labels of an example make no difference."""
        key = replace(item, wrong=())
        if key not in self._readings:
            self._readings[key] = self._cutter.cut(item.question, item.answer, item.chunks)
        return self._readings[key]


class Shelf:
    """Encoded runs: while the encoder is frozen, each is encoded once. Two bytes a number."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._vectors: dict[Run, Tensor] = {}

    def batch(self, readings: Sequence[Reading]) -> Batch:
        """With the vectors of their runs."""
        runs = {run for reading in readings for run in (*reading.said, *reading.evidence)}
        missing = [run for run in runs if run not in self._vectors]
        for run, vectors in zip(missing, self._encoder(missing), strict=True):
            self._vectors[run] = vectors.to(torch.bfloat16)
        return Batch(readings, self._vectors.__getitem__, self._encoder.width)


def _standardise(reader: Reader, readings: Sequence[Reading]) -> None:
    """Let the counts have mean 0 and variance 1 over the learned answers."""
    table = torch.tensor(np.stack([reading.counts for reading in readings]))
    reader.count_mean.copy_(table.mean(0))
    reader.count_scale.copy_(table.std(0).clamp(min=0.05))


def rate_at(steps: int) -> Callable[[int], float]:
    """A factor of the rate by step: up over the first, then down in a line to a fiftieth."""
    warm = max(1, int(WARM * steps))
    return lambda step: min(1.0, (step + 1) / warm) * max(0.02, 1 - step / steps)


def _batches(
    cut: list[tuple[Example, Reading]], draw: random.Random
) -> Iterator[list[tuple[Example, Reading]]]:
    """Random batches of similar length, in random order."""
    draw.shuffle(cut)
    pool: list[list[tuple[Example, Reading]]] = []
    for start in range(0, len(cut), BATCH * 8):
        some = sorted(
            cut[start : start + BATCH * 8], key=lambda pair: (pair[1].tokens, len(pair[1].evidence_stems))
        )
        pool.extend(some[at : at + BATCH] for at in range(0, len(some), BATCH))
    draw.shuffle(pool)
    yield from pool


def labels_of(item: Example, reading: Reading) -> NDArray[np.float32]:
    """1 for every token of the answer that a label touches, [token]."""
    wrong = np.zeros(reading.tokens, np.float32)
    for start, end in item.wrong:
        wrong[(reading.starts < end) & (reading.ends > start)] = 1
    return wrong


def loss_of(reader: Reader, batch: Batch, some: Sequence[tuple[Example, Reading]]) -> Tensor:
    """Of tokens and of whole answers, over one batch of these examples."""
    token, answer = reader(batch)
    wanted, weight = torch.zeros_like(token), torch.zeros_like(token)
    for row, (item, reading) in enumerate(some):
        wanted[row, : reading.tokens] = torch.from_numpy(labels_of(item, reading))
        # Between a mean over tokens and one over answers: a long answer tells more, but not in proportion.
        weight[row, : reading.tokens] = max(1, reading.tokens) ** -0.5
    loss = torch.nn.functional.binary_cross_entropy_with_logits
    of_tokens = loss(token, wanted, weight=weight, reduction="sum") / weight.sum()
    is_wrong = torch.tensor([float(bool(item.wrong)) for item, _ in some])
    return of_tokens + ANSWER_WEIGHT * loss(answer, is_wrong)


def measure(
    reader: Reader,
    batch: Callable[[Sequence[Reading]], Batch],
    cuts: Cuts,
    rows: Sequence[LabelledAnswer],
) -> dict[str, dict[str, float]]:
    """How well each dataset's tuning part is ranked: answers and tokens."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    found: dict[str, dict[str, float]] = {}
    for dataset in sorted({row.dataset for row in rows}):
        mine = sorted((r for r in rows if r.dataset == dataset), key=lambda r: len(r.answer))
        answers, truths, tokens, wrong = [], [], [], []
        for start in range(0, len(mine), BATCH):
            items = [example(row) for row in mine[start : start + BATCH]]
            readings = [cuts.reading(item) for item in items]
            with torch.inference_mode():
                token, answer = reader(batch(readings))
            for row, (item, reading) in enumerate(zip(items, readings, strict=True)):
                answers.append(float(answer[row]))
                truths.append(bool(item.wrong))
                tokens.append(token[row, : reading.tokens].numpy())
                wrong.append(labels_of(item, reading))
        every, truth = np.concatenate(tokens), np.concatenate(wrong)
        figures = {"answers": float(len(mine)), "mean": float(np.mean(1 / (1 + np.exp(-np.array(answers)))))}
        if 0 < sum(truths) < len(truths):
            worst = [float(row.max()) if len(row) else -9.0 for row in tokens]
            figures |= {
                "auroc": float(roc_auc_score(truths, answers)),
                "ap": float(average_precision_score(truths, answers)),
                "auroc of the worst token": float(roc_auc_score(truths, worst)),
                "token auroc": float(roc_auc_score(truth, every)),
                "token ap": float(average_precision_score(truth, every)),
                "token f1": _best_f1(truth, every),
            }
        found[dataset] = {name: round(value, 4) for name, value in figures.items()}
    return found


def _best_f1(truth: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    order = np.argsort(-scores)
    hits = np.cumsum(truth[order])
    return float(np.max(2 * hits / (np.arange(1, len(hits) + 1) + truth.sum())))


def card_of(
    files: Sequence[Path], seed: int, epoch: int, epochs: int, measured: dict[str, Any]
) -> dict[str, Any]:
    """What a reader was learned from, to stand beside it."""
    return {
        "name": "ragblame-support",
        "encoder": "all-MiniLM-L6-v2",
        "layers": list(LAYERS),
        "split": SPLIT,
        "seed": seed,
        "epochs": [epoch + 1, epochs],
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files},
        "tuning": measured,
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None, help="answers, to see that it runs")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--encoder", type=Path, default=None, help="a run of adapting.py to read with")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    train(args.files, args.out, epochs=args.epochs, seed=args.seed, limit=args.limit, encoder=args.encoder)


if __name__ == "__main__":
    main()
