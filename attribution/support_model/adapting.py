"""Trains the encoder together with a reader that has learned already; the second half of the recipe.

Run: python -m ragblame.attribution.support_model.adapting FILE.jsonl.gz … --run FOLDER --out FOLDER
``--run`` is what ``training.py`` wrote. Learned are low-rank changes of every matrix of the encoder, and the
reader goes on learning at a lower rate. Examples with the same chunks stand in one batch, so that a chunk is
encoded once for all answers that were given from it.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from ragblame.attribution.support_model import adapter
from ragblame.attribution.support_model.averaging import Average
from ragblame.attribution.support_model.cutting import Reading, Run
from ragblame.attribution.support_model.encoder import LAYERS, native_dtype
from ragblame.attribution.support_model.examples import Example, examples
from ragblame.attribution.support_model.network import Batch
from ragblame.attribution.support_model.training import (
    BATCH,
    Cuts,
    card_of,
    loss_of,
    measure,
    rate_at,
    rows_of,
)
from ragblame.attribution.support_model.weights import load_learned, original, save

EPOCHS: Final = 2
RANK: Final = 8
SCALE: Final = 2.0  # of a change, alpha / rank in the paper
RATE: Final = 5e-4  # of the changes
READER_RATE: Final = 2e-4
DROP: Final = 0.1


class Adapted(nn.Module):
    """``x W^T + b`` with a change of ``W``; what is frozen is as precise as in the encoder."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.detach().to(dtype), persistent=False)
        self.register_buffer("bias", bias.detach().to(dtype), persistent=False)
        self.down = nn.Parameter(torch.randn(RANK, weight.shape[1]) / math.sqrt(weight.shape[1]))
        self.up = nn.Parameter(torch.zeros(weight.shape[0], RANK))
        self.drop = nn.Dropout(DROP)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [token, in], of the weight's precision."""
        low = linear(self.drop(x), self.down.to(x.dtype))
        return linear(x, self.weight, self.bias) + linear(low, self.up.to(x.dtype)) * SCALE


class AdaptedLayer(nn.Module):
    """As a layer of ``encoder.py``, with gradients: sums and norms in float32."""

    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        super().__init__()
        own = layer.attention.self
        self.heads, self.dtype = int(own.num_attention_heads), dtype
        self.score = float(own.attention_head_size) ** -0.5  # here in the queries
        self.query = Adapted(own.query.weight * self.score, own.query.bias * self.score, dtype)
        self.key = Adapted(own.key.weight, own.key.bias, dtype)
        self.value = Adapted(own.value.weight, own.value.bias, dtype)
        self.out, self.wide, self.narrow = (
            Adapted(part.weight, part.bias, dtype)
            for part in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        )
        self.attended, self.fed = layer.attention.output.LayerNorm, layer.output.LayerNorm
        self.drop = nn.Dropout(DROP)

    def forward(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """``x`` [token of all runs, width] in float32; ``sizes``: tokens of each run."""
        given = x.to(self.dtype)
        query, key, value = (
            torch.split(part(given).view(len(x), self.heads, -1).transpose(0, 1), list(sizes), 1)
            for part in (self.query, self.key, self.value)
        )
        seen = torch.cat(
            [
                torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v).transpose(0, 1).flatten(1)
                for q, k, v in zip(query, key, value, strict=True)
            ]
        )
        x = self.attended(x + self.drop(self.out(seen).float()))
        fed: Tensor = self.fed(x + self.drop(self.narrow(gelu(self.wide(x.to(self.dtype)))).float()))
        return fed


class AdaptedEncoder(nn.Module):
    """The encoder with what it may learn."""

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        """``model``, ``dtype``: as for ``Encoder``."""
        super().__init__()
        model.requires_grad_(False)
        self.embeddings = model.embeddings
        number = dtype or native_dtype()
        self.layers = nn.ModuleList(AdaptedLayer(layer, number) for layer in model.encoder.layer)
        self.width = len(LAYERS) * int(model.config.hidden_size)

    def forward(self, runs: Sequence[Run]) -> dict[Run, Tensor]:
        """Vectors of distinct runs, [used token, layers x width]."""
        sizes = [len(run.ids) for run in runs]
        x = self.embeddings(
            input_ids=torch.tensor([[number for run in runs for number in run.ids]]),
            position_ids=torch.cat([torch.arange(size) for size in sizes])[None],
        )[0]
        wanted = []
        for number, layer in enumerate(self.layers, 1):
            x = layer(x, sizes)
            if number in LAYERS:
                wanted.append(x)
        joined = torch.split(torch.cat(wanted, -1), sizes)
        return {run: rows[run.start : run.end] for run, rows in zip(runs, joined, strict=True)}

    def batch(self, readings: Sequence[Reading]) -> Batch:
        """A batch of readings; equal runs are encoded once."""
        runs = list(dict.fromkeys(run for one in readings for run in (*one.said, *one.evidence)))
        return Batch(readings, self(runs).__getitem__, self.width)

    def changes(self) -> dict[str, Tensor]:
        """What was learned, as ``adapter.add`` takes it."""
        found = {}
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, AdaptedLayer)
            for place in adapter.PLACES:
                part = getattr(layer, place)
                scale = SCALE / layer.score if place == "query" else SCALE
                found[adapter.name_of(number, place, "down")] = part.down.detach()
                found[adapter.name_of(number, place, "up")] = part.up.detach() * scale
        return found


def adapt(
    files: Sequence[Path], run: Path, out: Path, *, epochs: int, seed: int, limit: int | None = None
) -> None:
    """Train and write the averaged weights after every epoch. Raises ``ModelError`` without a run."""
    torch.manual_seed(seed)
    learning, tuning = rows_of(files, limit)
    model, tokenizer = original()
    encoder = AdaptedEncoder(model)
    _, (reader,), begun = load_learned(run)
    cuts = Cuts(tokenizer)
    changes = [value for value in encoder.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(
        [
            {"params": changes, "lr": RATE, "weight_decay": 0.01},
            {"params": reader.parameters(), "lr": READER_RATE, "weight_decay": 0.05},
        ],
        betas=(0.9, 0.98),
    )
    both = nn.ModuleList([encoder, reader])
    average = Average(both)
    steps = epochs * -(-len(examples(learning, random.Random(seed))) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate_at(steps))
    step, started = 0, time.perf_counter()
    for epoch in range(epochs):
        draw = random.Random(f"{seed}/{epoch}")
        both.train()
        losses = []
        for some in _batches(examples(learning, draw), draw):
            readings = [cuts.reading(item) for item in some]
            loss = loss_of(reader, encoder.batch(readings), list(zip(some, readings, strict=True)))
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_([*changes, *reader.parameters()], 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            average.add(step)
            losses.append(float(loss.detach()))
            if step % 25 == 0:
                done = time.perf_counter() - started
                print(f"epoch {epoch} step {step} of {steps} loss {np.mean(losses[-50:]):.4f} {done:.0f} s",
                      flush=True)  # fmt: skip
        average.swap()
        both.eval()
        measured = measure(reader, encoder.batch, cuts, tuning)
        print(json.dumps({"epoch": epoch, **measured}), flush=True)
        card = {**card_of(files, seed, epoch, epochs, measured), "begun": begun}
        save(reader, out / f"epoch-{epoch}", card, encoder.changes())
        if epoch == epochs - 1:
            save(reader, out / "last", card, encoder.changes())
        average.swap()


def _batches(items: Sequence[Example], draw: random.Random) -> list[list[Example]]:
    """In random order; examples with the same chunks side by side."""
    by_chunks: dict[tuple[str, ...], list[Example]] = {}
    for item in items:
        by_chunks.setdefault(item.chunks, []).append(item)
    groups = list(by_chunks.values())
    draw.shuffle(groups)
    ordered: list[Example] = [item for group in groups for item in group]
    found = [ordered[start : start + BATCH] for start in range(0, len(ordered), BATCH)]
    draw.shuffle(found)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--run", type=Path, required=True, help="what training.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=None, help="answers, to see that it runs")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    adapt(args.files, args.run, args.out, epochs=args.epochs, seed=args.seed, limit=args.limit)


if __name__ == "__main__":
    main()
