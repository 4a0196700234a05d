"""The last layer, computed for the rows whose predictions are read, and for no other.

A token before the answer serves the answer by its keys and values alone, so in the last layer its query, the
projection of what attention reads for it, and its feed-forward network are work that nobody looks at: nearly
the whole layer, the longer the context the nearer. Leaving it out changes no number. Which modules may be
spared follows from their names, and whether that is right for a model is found out by trying it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

# By the names that the library's decoders give them; what makes keys and values is not among them.
NETWORKS: Final = frozenset({"mlp", "feed_forward"})
PROJECTIONS: Final = frozenset({"q_proj", "o_proj", "out_proj", "dense", "c_proj", "fc1", "fc2"})
_TRIED: Final = 24  # tokens
_TOLERANCE: Final = 1e-3  # of the largest logit: other shapes round otherwise, a wrong row is far beyond it


class LastLayer:
    """What of a causal model's last layer works row by row."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Nothing is spared where it cannot be found, or where it would change a prediction."""
        get_head: Callable[[], nn.Module | None] = model.get_output_embeddings
        self._head = get_head()
        self.modules = _row_wise(model)
        if self.modules and not self._is_exact(model):
            self.modules = []

    @contextmanager
    def rows_from(self, first: int) -> Iterator[None]:
        """In this thread's forwards, only rows from ``first`` on are worth reading behind the last layer;
        their logits and gradients are what they were."""
        with ExitStack() as stack:
            for module in self.modules if first > 0 else ():
                rows = _Rows(first)
                stack.callback(module.register_forward_pre_hook(rows.cut).remove)
                stack.callback(module.register_forward_hook(rows.pad).remove)
            if isinstance(self._head, nn.Linear):
                stack.callback(self._head.register_forward_pre_hook(_in_a_row).remove)
            yield

    @torch.inference_mode()
    def _is_exact(self, model: PreTrainedModel) -> bool:
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(int(weight.shape[0]), (2, _TRIED), generator=generator).to(model.device)
        first = _TRIED - 7
        whole = model(input_ids=ids, use_cache=False).logits[:, first:].float()
        with self.rows_from(first):
            spared = model(input_ids=ids, use_cache=False).logits[:, first:].float()
        tolerance = _TOLERANCE if model.dtype == torch.float32 else 0.05
        return bool((whole - spared).abs().max() <= tolerance * (1 + whole.abs().max()))


class _Rows:
    """A pair of hooks on one module: it sees the rows from ``first`` on, its caller as many as before."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._thread = threading.get_ident()  # another thread may run the same model for other rows
        self._is_cut = False

    def cut(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if threading.get_ident() != self._thread:
            return None
        states = inputs[0] if len(inputs) == 1 else None  # with a residual beside it, left whole
        self._is_cut = isinstance(states, Tensor) and states.ndim == 3 and states.shape[1] > self._first
        return (inputs[0][:, self._first :].contiguous(),) if self._is_cut else None

    def pad(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if threading.get_ident() != self._thread or not self._is_cut:
            return None
        if isinstance(output, tuple):  # a mixture of experts may tell its routing, too
            return (self._padded(output[0]), *output[1:])
        return self._padded(output)

    def _padded(self, output: Tensor) -> Tensor:
        return nn.functional.pad(output, (0, 0, self._first, 0))


def _in_a_row(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A part of each row is not one block of memory, and a product with it would be made row by row."""
    return (inputs[0].contiguous(), *inputs[1:])


def _row_wise(model: PreTrainedModel) -> list[nn.Module]:
    """Modules of the last layer that treat each row by itself and make neither keys nor values."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    stacks = [
        module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(stacks) != 1:
        return []
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for name, child in module.named_children():
            if name in NETWORKS or (name in PROJECTIONS and isinstance(child, nn.Linear | Conv1D)):
                found.append(child)
            else:
                walk(child)

    walk(stacks[0][-1])
    return found
