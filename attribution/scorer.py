"""The only door between the mathematics and a model: log-probabilities of the answer for each coalition.

Estimators see arrays, so a dictionary serves them as well as a language model does, and a faster engine or a
remote server can take this place without any of them changing.
"""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ragblame.attribution.kv_pool import LayerShape
from ragblame.attribution.last_layer import LastLayer
from ragblame.attribution.layout import Layout
from ragblame.attribution.loading import digest_state, load
from ragblame.attribution.onednn import OneDnn
from ragblame.attribution.sweep import Engine, Sweep, shareable_state
from ragblame.errors import ContextLengthError, ModelError
from ragblame.records import Cost, ScorerRef

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

TREE_FROM = 8  # coalitions of one call from which on they are scored along their prefix tree
CACHE_BYTES = 1 << 29  # keys and values that a sweep keeps at once by default


class Scorer(Protocol):
    """What an estimator needs of a model."""

    @property
    def ref(self) -> ScorerRef:
        """Which model this is."""
        ...

    @property
    def cost(self) -> Cost:
        """Everything spent so far; subtract two readings for one computation."""
        ...

    def score(self, layout: Layout, masks: Sequence[int]) -> NDArray[np.float32]:
        """Log-probability in nats of each answer token, shape [coalition, answer token], each <= 0.

        Bit i of a mask says that ``layout.players[i]`` is in the prompt; the answer is teacher-forced.
        """
        ...


def spent_since(scorer: Scorer, before: Cost) -> Cost:
    """What a scorer spent since ``before = scorer.cost`` was read."""
    now = scorer.cost
    return Cost(
        scored_coalitions=now.scored_coalitions - before.scored_coalitions,
        forwards=now.forwards - before.forwards,
        backwards=now.backwards - before.backwards,
        tokens=now.tokens - before.tokens,
        seconds=now.seconds - before.seconds,
    )


class TransformersScorer:
    """A local causal LM of the transformers library.

    ``model`` is taken over: evaluation mode, weights frozen. Batches are right-padded; in a causal model
    nothing that stands later can be seen, so padding changes no answer token. Only answer rows go through the
    output head, which runs in float32 also for half-precision models: bfloat16 logits carry errors of up to
    0.06 nats each, as large as real effects. Sweeps of ``TREE_FROM`` coalitions and more share the keys and
    values of what their prompts begin with, where the model's state allows it: the same numbers, less work.
    ``engine`` says how the last call was scored and why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        revision: str | None = None,
        is_own_model: bool = False,
        batch_size: int = 16,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        """Wrap a loaded model. Raises ``ModelError`` for encoder-decoders and models that look ahead.

        ``batch_size``: coalitions of one forward. ``cache_bytes``: keys and values that a sweep may keep.
        """
        family = str(model.config.model_type)
        if model.config.is_encoder_decoder:
            raise ModelError(f"model type {family!r} is an encoder-decoder; a scorer must be a causal LM")
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "the tokenizer is not a fast one, so tokens cannot be mapped to text; use a fast one"
            )
        model.train(False)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.family = family
        self.ref = ScorerRef(
            name=name or model.config.name_or_path or family,
            revision=revision or digest_state(model),
            is_own_model=is_own_model,
        )
        self.cost = Cost()
        self.accepts = frozenset(inspect.signature(model.forward).parameters)
        self.cache_bytes = cache_bytes
        self.shares_prefixes = True  # False: every coalition by itself, for comparison
        self.spares_last_layer = True  # False: all of its rows, for comparison
        self.multiplies_by_onednn = True  # False: as the library multiplies, for comparison
        self.engine: Engine | None = None  # None before the first call
        self.look: Callable[[float], None] = lambda part: None
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        self.vocabulary = int(weight.shape[0])
        self._last_layer = LastLayer(model)
        self._onednn = OneDnn(model)
        _check_causal(self, self.vocabulary)
        self._state = shareable_state(self)  # what a prefix tree keeps, or why there can be none

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | None = None,
        *,
        is_own_model: bool = False,
        threads: int | None = None,
        batch_size: int = 16,
        cache_bytes: int = CACHE_BYTES,
        device: str | None = None,
    ) -> "TransformersScorer":
        """Load from a folder or the local cache, never from the network; None: the shipped small model.

        ``threads``: torch threads of this process, None for its default. ``cache_bytes``: keys and values
        that a sweep may keep. Raises ``ModelError``.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        if name_or_path is None:
            from ragblame.attribution.world import shipped

            try:
                name_or_path = str(shipped.model_path())
            except FileNotFoundError as error:
                raise ModelError(str(error)) from error
            name = "ragblame small model"
        else:
            name = name_or_path
        model, tokenizer, revision = load(name_or_path, device=device)
        return cls(
            model,
            tokenizer,
            name=name,
            revision=revision,
            is_own_model=is_own_model,
            batch_size=batch_size,
            cache_bytes=cache_bytes,
        )

    @property
    def max_length(self) -> int | None:
        """Longest prompt plus answer in tokens that the model was made for; None when it has no limit."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    def check_length(self, prompt_tokens: int, answer_tokens: int) -> None:
        """Raises ``ContextLengthError`` naming both lengths when prompt and answer do not fit."""
        limit = self.max_length
        if limit is not None and prompt_tokens + answer_tokens > limit:
            raise ContextLengthError(
                f"prompt ({prompt_tokens} tokens) and answer ({answer_tokens} tokens) exceed what "
                f"{self.ref.name} reads ({limit} tokens); use a scorer with a longer context"
            )

    def score(self, layout: Layout, masks: Sequence[int]) -> NDArray[np.float32]:
        """See ``Scorer.score``. Raises ``ContextLengthError`` when prompt and answer exceed the context."""
        started = time.perf_counter()
        answer = layout.answer_ids
        prompts: dict[int, tuple[int, ...]] = {}
        for mask in sorted(set(masks), key=int.bit_count, reverse=True):  # the longest first: fail early
            prompts[mask] = layout.prompt_ids(mask)
            self.check_length(len(prompts[mask]), len(answer))
        self._check_vocabulary(max((max(ids) for ids in (*prompts.values(), answer)), default=0))
        sweep = Sweep(self, list(dict.fromkeys(prompts.values())), answer)
        rows: dict[tuple[int, ...], NDArray[np.float32]] | None = None
        shapes = self._shareable(len(prompts))
        if isinstance(shapes, str):
            sweep.reasons.append(shapes)
        else:
            rows = sweep.along_tree(shapes, self.cache_bytes)
        name = "independent" if rows is None else "prefix tree"
        rows = sweep.independently() if rows is None else rows
        self.engine = Engine(name=name, reason="; ".join(sweep.reasons))
        table = (
            np.stack([rows[prompts[mask]] for mask in masks])
            if masks
            else np.empty((0, len(answer)), np.float32)
        )
        self.spend(
            scored_coalitions=len(masks),
            forwards=sweep.forwards,
            tokens=sweep.tokens,
            seconds=time.perf_counter() - started,
        )
        return table

    @contextmanager
    def watched(self, look: Callable[[float], None]) -> Iterator[None]:
        """Have ``look`` called before each batch with the part of the call that is done; it may raise."""
        before, self.look = self.look, look
        try:
            yield
        finally:
            self.look = before

    def _shareable(self, prompts: int) -> tuple[LayerShape, ...] | str:
        """What a prefix tree keeps of each token, or why these prompts are scored independently."""
        if not self.shares_prefixes:
            return "shares_prefixes is off"
        if prompts < TREE_FROM:
            return f"fewer than {TREE_FROM} coalitions"
        return self._state

    def spend(
        self,
        *,
        scored_coalitions: int = 0,
        forwards: int = 0,
        backwards: int = 0,
        tokens: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Add to the running cost; gradient and attention methods report through this too."""
        spent = self.cost
        self.cost = Cost(
            scored_coalitions=spent.scored_coalitions + scored_coalitions,
            forwards=spent.forwards + forwards,
            backwards=spent.backwards + backwards,
            tokens=spent.tokens + tokens,
            seconds=spent.seconds + seconds,
        )

    def answer_log_probs(
        self, input_ids: Tensor, starts: Sequence[int], answer: Sequence[int], **extra: Any
    ) -> Tensor:
        """Log-probabilities of the answer in each row of ``input_ids``, float32, shape [row, answer token].

        Row r holds its prompt in ``[0, starts[r])``, then the answer, whose last token may be left out, then
        padding. ``extra``: more arguments of the model, such as a cache of what stands before. Keeps the
        autograd graph when gradients are enabled.
        """
        first = min(starts) - 1
        kept = input_ids.shape[1] - first
        with (
            self.float32_head(),
            self._last_layer.rows_from(first if self.spares_last_layer else 0),
            self._onednn.products(is_wanted=self.multiplies_by_onednn),
        ):
            if "logits_to_keep" in self.accepts:
                extra["logits_to_keep"] = kept
            output = self.model(input_ids=input_ids, **{"use_cache": False, **extra})
        logits: Tensor = output.logits[:, -kept:]
        if len(set(starts)) == 1:  # as nearly always along the tree: nothing needs copying
            answer_rows = logits[:, : len(answer)].float()
        else:
            offsets = torch.tensor([start - 1 - first for start in starts], device=logits.device)
            index = offsets[:, None] + torch.arange(len(answer), device=logits.device)
            answer_rows = logits.gather(1, index[:, :, None].expand(-1, -1, logits.shape[-1])).float()
        targets = torch.tensor(answer, device=logits.device).expand(len(starts), -1)
        chosen = answer_rows.gather(2, targets[:, :, None]).squeeze(2)
        return chosen - answer_rows.logsumexp(dim=2)

    def _check_vocabulary(self, largest: int) -> None:
        if largest >= self.vocabulary:
            raise ModelError(
                f"token {largest} is beyond the {self.vocabulary} of {self.ref.name}: the tokenizer is "
                "another model's; use the tokenizer saved with it"
            )

    @contextmanager
    def float32_head(self) -> Iterator[None]:
        """Have the output head of a half-precision model compute in float32."""
        get_head: Callable[[], nn.Module | None] = self.model.get_output_embeddings
        head = get_head()
        if not isinstance(head, nn.Linear) or head.weight.dtype == torch.float32:
            yield
            return

        def in_float32(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            assert isinstance(module, nn.Linear)
            bias = None if module.bias is None else module.bias.float()
            return nn.functional.linear(inputs[0].float(), module.weight.float(), bias)

        handle: RemovableHandle = head.register_forward_hook(in_float32)
        try:
            yield
        finally:
            handle.remove()


@torch.inference_mode()
def _check_causal(scorer: TransformersScorer, vocabulary: int) -> None:
    """Change the last token: if an earlier prediction moves, the model looks ahead and cannot be a scorer."""
    model = scorer.model
    ids = torch.arange(8, device=model.device)[None] % vocabulary
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % vocabulary
    before = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    after = model(input_ids=changed, use_cache=False).logits[:, :-1].float()
    if not torch.allclose(before, after, atol=1e-3 * (1 + float(before.abs().max()))):
        raise ModelError(
            f"model type {scorer.family!r} of {scorer.ref.name} reads ahead (an encoder?); "
            "a scorer must be a causal LM"
        )
