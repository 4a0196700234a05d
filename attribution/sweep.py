"""One sweep of coalitions through a model, in batches: along their prefix tree, or each prompt by itself.

Both are exact. Along the tree each shared run of tokens goes through the model once. Whether a model's state
can be shared is found out by trying it, so that a new family, or a new version of the library, is either
served rightly or scored independently with the reason said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ragblame.attribution.kv_pool import KvPool, LayerShape, plain_shapes
from ragblame.attribution.prefix_tree import Row, Walk, longest_chain, plan
from ragblame.errors import ModelError

if TYPE_CHECKING:
    from ragblame.attribution.scorer import TransformersScorer

MAX_BATCH_TOKENS = 16_384  # padded tokens of one forward: bounds activations whatever the batch size
MAX_LOGITS = 1 << 26  # answer rows x vocabulary of one forward (256 MB in float32): bounds the head's output
MAX_SPREAD = 64  # tokens by which rows of one batch may differ in length: rows of padding through the head
CPU_TREE_TOKENS = 1024  # the same along the tree on a CPU: gathered keys and masks should stay in its caches
MAX_GATHERED = 1 << 16  # tokens whose keys one forward gathers, padding included: bounds one layer's copy
MAX_MASK = 1 << 26  # entries of one forward's attention mask: bounds what a kernel makes of it
MAX_WASTE = 64  # padding tokens that cost less than one more forward; above, an eighth of the batch
PROBE_TOKENS = 24  # of the text on which a model's state is tried
TOLERANCE = 1e-3  # largest error of cached logits, as a part of what the context changes in them
COARSE_TOLERANCE = 0.25  # the same in half precision, where another batch alone moves logits as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How a sweep was scored."""

    name: str  # "prefix tree" or "independent"
    reason: str  # why independent, or what memory forced; empty: nothing to say


class Sweep:
    """Scores distinct prompts before one answer."""

    def __init__(
        self, scorer: "TransformersScorer", prompts: Sequence[tuple[int, ...]], answer: tuple[int, ...]
    ) -> None:
        self._scorer = scorer
        self._answer = answer
        self._prompts = prompts
        self._limit = scorer.batch_size
        self.forwards = 0
        self.tokens = 0  # pushed through the model's body, padding included
        self.reasons: list[str] = []

    def along_tree(
        self, shapes: Sequence[LayerShape], cache_bytes: int
    ) -> dict[tuple[int, ...], NDArray[np.float32]] | None:
        """Log-probabilities of the answer by prompt; None, with a reason, when memory does not suffice."""
        rows = plan(self._prompts)
        each = sum(shape.bytes for shape in shapes)
        slots = min(cache_bytes // each, sum(row.kept for row in rows))
        chain = longest_chain(rows)
        pool = None
        while slots >= chain and pool is None:
            pool = self._new_pool(shapes, slots)
            slots = slots if pool else slots // 2
        if pool is None:
            self.reasons.append(
                f"the keys and values of one prompt take {chain * each:,} bytes, more than cache_bytes "
                f"({cache_bytes:,}) or the machine allows"
            )
            return None
        return self._run(Walk(rows, slots), pool)

    def _new_pool(self, shapes: Sequence[LayerShape], slots: int) -> KvPool | None:
        try:
            return KvPool(shapes, slots, self._scorer.model.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def independently(self) -> dict[tuple[int, ...], NDArray[np.float32]]:
        """Log-probabilities of the answer by prompt, every prompt computed from its first token."""
        return self._run(
            Walk([Row(prompt=prompt, parent=None, start=0) for prompt in self._prompts], 0), None
        )

    @torch.inference_mode()
    def _run(self, walk: Walk, pool: KvPool | None) -> dict[tuple[int, ...], NDArray[np.float32]]:
        done: dict[tuple[int, ...], NDArray[np.float32]] = {}
        while batch := walk.take(lambda batch, row: self._can_join(batch, row, pool)):
            self._scorer.look(len(done) / len(self._prompts))
            values = None
            try:
                values = self._forward(batch, pool)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise ModelError(
                        "memory ends with a single coalition in the batch; lower cache_bytes, or score with "
                        "a smaller model or on a larger machine"
                    ) from error
            if values is None:  # behind the except block: its traceback would keep the tensors alive
                self._limit = len(batch) // 2
                self.reasons.append(f"memory ended, so at most {self._limit} coalitions went at once")
                walk.postpone(batch)
                continue
            walk.finish(batch)
            done.update(zip((row.prompt for row in batch), values, strict=True))
        return done

    def _can_join(self, batch: Sequence[Row], row: Row, pool: KvPool | None) -> bool:
        """Whether a row may join a batch that is sorted by computed tokens, of which it has the most."""
        answer = len(self._answer) - 1  # tokens that are read
        count = len(batch) + 1
        length = len(row.prompt) - row.start + answer
        spread = length - (len(batch[0].prompt) - batch[0].start + answer)
        fits = (
            count <= self._limit
            and count * length <= MAX_BATCH_TOKENS
            and count * (spread + answer + 1) * self._scorer.vocabulary <= MAX_LOGITS
            and spread <= max(MAX_SPREAD, answer)
        )
        if not fits or pool is None:
            return fits
        whole = max(row.start, *(other.start for other in batch)) + length
        waste = sum(length - answer - len(other.prompt) + other.start for other in batch)
        on_cpu = self._scorer.model.device.type == "cpu"
        return (
            (not on_cpu or count * length <= CPU_TREE_TOKENS)
            and count * whole <= MAX_GATHERED
            and count * length * whole <= MAX_MASK
            and waste <= max(MAX_WASTE, count * length // 8)
        )

    def _forward(self, batch: Sequence[Row], pool: KvPool | None) -> NDArray[np.float32]:
        """Log-probabilities of the answer after each row, shape [row, answer token]."""
        new = [row.prompt[row.start :] + self._answer[:-1] for row in batch]  # after the last, nothing
        length = max(map(len, new))
        ids = np.full((len(batch), length), self._answer[-1], np.int64)
        for line, tokens in zip(ids, new, strict=True):
            line[: len(tokens)] = tokens
        device = self._scorer.model.device
        extra: dict[str, Any] = {}
        if pool is not None:
            starts = [row.start for row in batch]
            extra = placed(self._scorer, starts, list(map(len, new)), device)
            extra["past_key_values"] = pool.cache(
                [row.chain for row in batch], [row.own for row in batch], length
            )
        values = self._scorer.answer_log_probs(
            torch.from_numpy(ids).to(device),
            [len(row.prompt) - row.start for row in batch],
            self._answer,
            **extra,
        )
        table: NDArray[np.float32] = values.cpu().numpy()
        if not np.isfinite(table).all():
            raise ModelError(
                f"{self._scorer.ref.name} gives log-probabilities that are not finite; load it in float32 or "
                "check its weights"
            )
        self.forwards += 1
        self.tokens += ids.size
        return np.minimum(table, 0.0, dtype=np.float32)


def placed(
    scorer: "TransformersScorer", starts: Sequence[int], lengths: Sequence[int], device: torch.device
) -> dict[str, Any]:
    """Mask and positions of rows that go on at ``starts`` with ``lengths`` tokens.

    What stands before ends where the new tokens begin, so that distances within a row are true ones and
    windows stay exact; it is padded on the left, new tokens on the right. A padding token repeats its row's
    last position: none lies beyond what the model knows.
    """
    past, length = max(starts), max(lengths)
    mask = np.zeros((len(starts), past + length), np.int64)
    places = np.zeros((len(starts), length), np.int64)
    for row, (start, count) in enumerate(zip(starts, lengths, strict=True)):
        mask[row, past - start : past + count] = 1
        places[row] = np.minimum(np.arange(start, start + length), start + count - 1)
    extra: dict[str, Any] = {"attention_mask": torch.from_numpy(mask).to(device), "use_cache": True}
    if "position_ids" in scorer.accepts:
        extra["position_ids"] = torch.from_numpy(places).to(device)
    return extra


@torch.inference_mode()
def shareable_state(scorer: "TransformersScorer") -> tuple[LayerShape, ...] | str:
    """Shapes of the keys and values when they may be shared among prompts, else the reason why not.

    Tried on two short sequences that go on from beginnings of different length in one padded batch: their
    logits must be those of whole sequences, within ``TOLERANCE`` of what another beginning changes.
    """
    model = scorer.model
    if "past_key_values" not in scorer.accepts or "attention_mask" not in scorer.accepts:
        return f"model type {scorer.family!r} takes no cache of keys and values"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(scorer.vocabulary, (1, PROBE_TOKENS), generator=generator).to(model.device)
    try:
        shapes = plain_shapes(model, ids)
        if shapes is None:
            return f"the state of model type {scorer.family!r} is not plain keys and values"
        error, effect = _cache_error(scorer, shapes, ids)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as fault:
        if is_out_of_memory(fault):
            raise
        return f"model type {scorer.family!r} refuses a plain cache ({type(fault).__name__})"
    is_fine = all(shape.dtype in (torch.float32, torch.float64) for shape in shapes)
    if not error <= (TOLERANCE if is_fine else COARSE_TOLERANCE) * effect + 1e-5:
        return f"with a cache, logits of model type {scorer.family!r} are off by {error:.1e}"
    return shapes


def _cache_error(
    scorer: "TransformersScorer", shapes: Sequence[LayerShape], ids: Tensor
) -> tuple[float, float]:
    """Largest error of logits with a cache, and largest effect of a beginning on them."""
    model, device = scorer.model, scorer.model.device
    count = ids.shape[1]
    first, second, tail = count // 2, count // 4, 5
    pool = KvPool(shapes, count, device)
    slots = np.arange(1, count + 1)
    none = np.empty(0, np.int64)
    model(
        input_ids=ids,
        past_key_values=pool.cache([none], [slots], count),
        **placed(scorer, [0], [count], device),
    )
    starts, lengths = [first, second], [tail, tail - 2]
    new = torch.stack([ids[0, start : start + tail] for start in starts])
    cached = model(
        input_ids=new,
        past_key_values=pool.cache([slots[:first], slots[:second]], [none, none], tail),
        **placed(scorer, starts, lengths, device),
    ).logits.float()
    error = effect = 0.0
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        whole = model(input_ids=ids[:, : start + length], use_cache=False).logits[0, start:].float()
        bare = model(input_ids=ids[:, start : start + length], use_cache=False).logits[0].float()
        error = max(error, float((cached[row, :length] - whole).abs().max()))
        effect = max(effect, float((bare - whole).abs().max()))
    return error, effect


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on an accelerator or on the CPU, where torch has no class for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
