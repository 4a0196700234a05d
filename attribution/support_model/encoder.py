"""The frozen sentence encoder, run on packed tokens: vectors of runs, none of them padded.

A run of 170 tokens beside three of 100 would be padded to four of 170, a third more work than there is. Here
the tokens of all runs stand in one row, through every matrix product at once, and only attention goes run by
run. Layers above the last that is wanted are not run. Numbers are bfloat16 where the processor multiplies
them at twice the speed of float32; that moves a probability by far less than another training run does.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from ragblame.attribution.support_model.cutting import Run

LAYERS: Final = (3, 6)  # whose outputs are taken
_PACK: Final = "_reorder_linear_weight"  # what torch.compile calls for a linear layer on a CPU
_MULTIPLY: Final = "_linear_pointwise"
_USUAL_TOKENS: Final = 512  # of one row, to choose the layout by
_TOKENS: Final = 8_192  # in one row at most, or one run: bounds memory


def native_dtype() -> torch.dtype:
    """bfloat16 on processors that have instructions for its products, else float32."""
    # The library's own tests, in versions that have them.
    tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return torch.bfloat16 if any(getattr(torch.cpu, name, bool)() for name in tests) else torch.float32


class Encoder:
    """Vectors of runs, [used token, layers x width], as the model gives them for each run alone."""

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        """``model``: a transformers ``BertModel`` in evaluation, which this takes for itself. ``dtype``: None
        for the fastest of this machine."""
        number = dtype or native_dtype()
        self._layers = [_Layer(layer, number) for layer in model.encoder.layer[: max(LAYERS)]]
        self._embeddings = model.to(number).embeddings
        self.width = len(LAYERS) * int(model.config.hidden_size)

    @torch.inference_mode()
    def __call__(self, runs: Sequence[Run]) -> list[Tensor]:
        """In the order given."""
        found: list[Tensor] = []
        start = 0
        while start < len(runs):
            end, size = start + 1, len(runs[start].ids)
            while end < len(runs) and size + len(runs[end].ids) <= _TOKENS:
                size += len(runs[end].ids)
                end += 1
            found.extend(self._row(runs[start:end]))
            start = end
        return found

    def _row(self, runs: Sequence[Run]) -> list[Tensor]:
        sizes = [len(run.ids) for run in runs]
        x = self._embeddings(
            input_ids=torch.tensor([[number for run in runs for number in run.ids]]),
            position_ids=torch.cat([torch.arange(size) for size in sizes])[None],
        )[0]
        wanted = []
        for number, layer in enumerate(self._layers, 1):
            x = layer(x, sizes)
            if number in LAYERS:
                wanted.append(x)
        joined = torch.split(torch.cat(wanted, -1), sizes)
        return [rows[run.start : run.end].clone() for rows, run in zip(joined, runs, strict=True)]


class _Product:
    """``x W^T + b``. In bfloat16 the weights are laid out for the processor once, where the library can."""

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._weight, self._bias = weight.detach().to(dtype), bias.detach().to(dtype)
        self._packed: Tensor | None = None
        can_pack = all(hasattr(torch.ops.mkldnn, name) for name in (_PACK, _MULTIPLY))
        if dtype == native_dtype() == torch.bfloat16 and can_pack:  # elsewhere the operators refuse
            self._packed = getattr(torch.ops.mkldnn, _PACK)(self._weight.contiguous(), _USUAL_TOKENS)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [token, width]."""
        if self._packed is None:
            return linear(x, self._weight, self._bias)
        multiply: Callable[..., Tensor] = getattr(torch.ops.mkldnn, _MULTIPLY)
        return multiply(x, self._packed, self._bias, "none", [], "")


class _Layer:
    """One layer of BERT: attention, then the feed-forward network, each added and normalised."""

    @torch.no_grad()
    def __init__(self, layer: Any, dtype: torch.dtype) -> None:
        own = layer.attention.self
        self.heads = int(own.num_attention_heads)
        scale = float(own.attention_head_size) ** -0.5  # of the scores, here already in the queries
        weight, bias = (
            torch.cat([getattr(own.query, name) * scale, getattr(own.key, name), getattr(own.value, name)])
            for name in ("weight", "bias")
        )
        self.read = _Product(weight, bias, dtype)
        self.out, self.wide, self.narrow = (
            _Product(part.weight, part.bias, dtype)
            for part in (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
        )
        self.attended = layer.attention.output.LayerNorm.to(dtype)
        self.fed = layer.output.LayerNorm.to(dtype)

    def __call__(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """``x`` [token of all runs, width]; ``sizes``: tokens of each run."""
        # [3, head, token, width of a head]
        read = self.read(x).view(len(x), 3, self.heads, -1).permute(1, 2, 0, 3).contiguous()
        # Runs are short: two products are faster than the fused kernel, and their scores are small.
        seen = torch.cat(
            [
                torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value).transpose(0, 1)
                for query, key, value in torch.split(read, list(sizes), 2)
            ]
        )
        x = self._add(x, self.out(seen.reshape(len(x), -1)), self.attended)
        return self._add(x, self.narrow(gelu(self.wide(x))), self.fed)

    @staticmethod
    def _add(x: Tensor, change: Tensor, norm: Any) -> Tensor:
        return layer_norm(x + change, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
