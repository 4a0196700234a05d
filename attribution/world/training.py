"""Trains the small model from its seed: `python -m ragblame.attribution.world.training --seed 0 --out DIR`.

It exists so that the shipped weights are no mystery: one command, scheduled by steps, resumable at any
checkpoint with the same result, about an hour and a half on one ordinary core.
"""

import argparse
import json
import math
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ragblame.attribution.world.batches import Batch, block
from ragblame.attribution.world.episodes import CROWDED, FULL, LINKED, RETRIEVED, VERBATIM, WORDED, Mixture
from ragblame.attribution.world.muon import Muon
from ragblame.attribution.world.structure import build_config, build_model
from ragblame.attribution.world.tokenizer import save_tokenizer, train_tokenizer

BLOCK = 32  # steps whose batches are drawn and sorted by length together


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """When what is learned, in steps. The defaults are the shipped model's."""

    steps: int = 6_000
    verbatim_until: int = 352  # multiples of BLOCK, as a block is drawn from one mixture
    worded_until: int = 704
    longest_at: int = 1_600  # from here on contexts have up to max_chunks chunks
    max_chunks: int = 10
    retrieved_from: int = 1_984  # from here on most contexts are what a retriever would bring
    crowded_from: int = 3_200  # from here on nearly all their chunks could be meant
    linked_from: int = 3_264  # and from here on two-hop questions and coincidences come often
    warm_up: int = 100
    decay: float = 0.45  # share of the steps over which the learning rate falls to zero
    rate: float = 3e-3
    early_tokens: int = 1_280  # per step, in the two easy phases
    tokens: int = 2_560  # per step, afterwards

    def mixture(self, step: int) -> Mixture:
        """What the block starting at `step` is drawn from."""
        if step < self.verbatim_until:
            return VERBATIM
        if step < self.worded_until:
            return WORDED
        grown = (step - self.worded_until) / max(1, self.longest_at - self.worded_until)
        mixture = FULL
        if step >= self.retrieved_from:
            mixture = RETRIEVED if step < self.crowded_from else CROWDED
        if step >= self.linked_from:
            mixture = LINKED
        return replace(mixture, max_chunks=min(self.max_chunks, 3 + int(grown * (self.max_chunks - 2))))

    def batch_tokens(self, step: int) -> int:
        return self.early_tokens if step < self.worded_until else self.tokens

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, then linear to zero."""
        left = (self.steps - step) / (self.decay * self.steps)
        return self.rate * min(1.0, (step + 1) / self.warm_up, max(left, 0.01))


class Training:
    """A run: model, optimisers, position in the schedule, and its folder."""

    def __init__(
        self,
        *,
        seed: int,
        out: Path,
        schedule: Schedule,
        device: str = "cpu",
        is_bf16: bool = False,
        tokenizer: PreTrainedTokenizerFast | None = None,
    ) -> None:
        self.seed, self.out, self.schedule, self.device, self.is_bf16 = seed, out, schedule, device, is_bf16
        out.mkdir(parents=True, exist_ok=True)
        self.tokenizer: PreTrainedTokenizerFast = tokenizer or train_tokenizer()
        self.model = self._build()
        # Muon for the hidden matrices halves the loss per step early on; it is not meant for the rest.
        hidden: list[torch.nn.Parameter] = []
        rest: list[torch.nn.Parameter] = []
        for name, weight in self.model.named_parameters():
            (hidden if name.endswith("proj.weight") else rest).append(weight)
        self.optimisers: list[torch.optim.Optimizer] = [
            Muon(hidden, weight_decay=0.05, momentum=0.95),
            torch.optim.AdamW(rest, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0

    def _build(self) -> LlamaForCausalLM:
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        assert isinstance(end, int)
        assert isinstance(pad, int)
        config = build_config(vocabulary=len(self.tokenizer), end=end, pad=pad)
        model = build_model(config, seed=self.seed)
        torch.nn.Module.to(model, self.device)  # in place; the override of transformers is not typed
        return model

    def batches(self) -> Iterator[Batch]:
        """Batches from the current step on: a function of seed and step, so a resumed run sees the same."""
        while self.step < self.schedule.steps:
            start = self.step - self.step % BLOCK
            drawn = block(
                f"{self.seed} {start}",
                self.schedule.mixture(start),
                self.tokenizer,
                batches=BLOCK,
                tokens=self.schedule.batch_tokens(start),
            )
            yield from drawn[self.step - start :]

    def learn(self, batch: Batch) -> tuple[float, float]:
        """One step. Returns the mean loss of value tokens (nats) and the share of them predicted right."""
        rate = self.schedule.learning_rate(self.step)
        ids, weights = batch.ids.to(self.device), batch.weights[:, 1:].to(self.device)
        at = weights > 0
        with torch.autocast(self.device, torch.bfloat16, enabled=self.is_bf16):
            hidden = self.model.model(input_ids=ids[:, :-1]).last_hidden_state
            logits = self.model.lm_head(hidden[at])  # only where there is something to learn
        losses = cross_entropy(logits.float(), ids[:, 1:][at], reduction="none")
        weight = weights[at]
        torch.autograd.backward((losses * weight).sum() / weight.sum())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += int(batch.ids.numel())
        is_value = weight == 1.0
        hits = logits.detach().argmax(-1)[is_value] == ids[:, 1:][at][is_value]
        return float(losses.detach()[is_value].mean()), float(hits.float().mean())

    def save(self) -> None:
        """A checkpoint that `resume` continues exactly, and the model as it is now."""
        state = {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
        }
        torch.save(state, self.out / "checkpoint.partial")
        (self.out / "checkpoint.partial").replace(self.out / "checkpoint.pt")
        self.export(self.out / "model")

    def resume(self) -> None:
        """Continue from the checkpoint in the run's folder, if there is one."""
        path = self.out / "checkpoint.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def export(self, folder: Path) -> None:
        """What is shipped: fp16 weights, configuration, tokenizer."""
        folder.mkdir(parents=True, exist_ok=True)
        end, newline = self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids("Ċ")
        copy = LlamaForCausalLM(self.model.config)
        copy.load_state_dict(self.model.state_dict())
        torch.nn.Module.half(copy)
        copy.config.use_cache = True
        copy.generation_config.eos_token_id = [end, newline]  # an answer ends with its line
        copy.generation_config.pad_token_id = self.tokenizer.pad_token_id
        copy.generation_config.do_sample = False
        copy.generation_config.use_cache = True
        copy.save_pretrained(folder)
        save_tokenizer(self.tokenizer, folder)

    def run(self, *, until: int | None = None, save_every: int = 250, console: Console | None = None) -> None:
        """Train to the end of the schedule (or to step `until`), logging the loss curve as JSON lines."""
        until = min(until or self.schedule.steps, self.schedule.steps)
        shown = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("value loss {task.fields[loss]:.2f}  right {task.fields[right]:.0%}"),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
        )
        losses: list[float] = []
        rights: list[float] = []
        with shown, (self.out / "loss.jsonl").open("a") as log:
            task = shown.add_task("", total=until, completed=self.step, loss=math.nan, right=0.0)
            for batch in self.batches():
                if self.step >= until:
                    break
                began = time.perf_counter()
                loss, right = self.learn(batch)
                self.seconds += time.perf_counter() - began
                losses.append(loss)
                rights.append(right)
                if self.step % 50 == 0:
                    mean, share = sum(losses) / len(losses), sum(rights) / len(rights)
                    row = {"step": self.step, "value_loss": round(mean, 4), "value_right": round(share, 4)}
                    row |= {"tokens": self.tokens, "seconds": round(self.seconds, 1)}
                    log.write(json.dumps(row) + "\n")
                    log.flush()
                    shown.update(task, completed=self.step, loss=mean, right=share)
                    losses, rights = [], []
                if self.step % save_every == 0:
                    self.save()
            shown.update(task, completed=self.step)
        self.save()


def keep_memory() -> None:
    """Start this process again with glibc told to keep its buffers: four times the speed on CPUs."""
    wanted = {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "268435456",
    }
    if platform.libc_ver()[0] != "glibc" or all(
        os.environ.get(key) == value for key, value in wanted.items()
    ):
        return
    command = [sys.executable, "-m", "ragblame.attribution.world.training", *sys.argv[1:]]
    os.execve(sys.executable, command, os.environ | wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=Schedule().steps)
    parser.add_argument("--until", type=int, help="stop early at this step of the schedule")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=1, help="more than one pays only on idle cores")
    parser.add_argument(
        "--float32", action="store_true", help="no bfloat16 on a GPU; a CPU takes float32 anyway"
    )
    arguments = parser.parse_args()
    keep_memory()
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(arguments.threads)
    training = Training(
        seed=arguments.seed,
        out=arguments.out,
        schedule=Schedule(steps=arguments.steps),
        device=device,
        is_bf16=not arguments.float32 and device == "cuda",
    )
    if arguments.resume:
        training.resume()
    training.run(until=arguments.until)


if __name__ == "__main__":
    main()
