"""A model's linear layers multiplied by oneDNN, which torch carries beside the BLAS that it uses for them.

A forward spends three quarters of its time in these products. On processors with AVX-512 (an AMD EPYC was
tried) oneDNN's kernels make them 6 to 10 % faster, in the same precision, on the same weights: nothing is
copied and the model is not touched. On one with AVX2 alone they are 15 to 20 % slower, so there the library
multiplies as ever. torch itself takes them for half precision and in compiled code only. The operator has no
gradient, so products that need one are left as they are, and whether a model's logits stay is found out by
trying it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

PAYS_ON: Final = "AVX512"  # what torch calls the processor's widest instructions
LEAST_WIDTH: Final = 256  # of a model's states: smaller products end before what asking costs is won back
_TRIED: Final = 24  # tokens
_TOLERANCE: Final = 1e-3  # of the largest logit: kernels round otherwise, a wrong product is far beyond it


def operator() -> Callable[..., Tensor] | None:
    """``(x, weight, bias, "none", [], "") -> x weight^T + bias``; None where this torch has none."""
    is_there: Callable[[], bool] = torch.backends.mkldnn.is_available
    if not is_there():
        return None
    found: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    return found


class _Products(TorchFunctionMode):
    """While it is entered, in this thread: linear layers in float32 that need no gradient go by oneDNN."""

    def __init__(self, multiply: Callable[..., Tensor]) -> None:
        super().__init__()
        self._multiply = multiply

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is linear and not kwargs and torch.is_inference_mode_enabled() and _is_plain(*args[:2]):
            return self._multiply(*args[:2], args[2] if len(args) > 2 else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _pays(weight: Tensor) -> bool:
    capability: str = torch.backends.cpu.get_cpu_capability()
    return capability == PAYS_ON and weight.shape[1] >= LEAST_WIDTH


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    return (
        x.dtype is weight.dtype is torch.float32
        and x.device.type == weight.device.type == "cpu"
        and weight.ndim == 2
        and x.numel() > 0
    )


class OneDnn:
    """What multiplies a model's linear layers."""

    def __init__(self, model: PreTrainedModel, *, always: bool = False) -> None:
        """Left to the library where the operator is missing or would change a prediction, and, but for
        ``always``, where it does not pay."""
        weight = model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        is_float = weight.device.type == "cpu" and weight.dtype is torch.float32
        self._multiply = operator() if is_float and (always or _pays(weight)) else None
        if self._multiply is not None and not self._is_exact(model, int(weight.shape[0])):
            self._multiply = None

    @property
    def is_used(self) -> bool:
        """Whether anything is multiplied otherwise than the library does."""
        return self._multiply is not None

    @contextmanager
    def products(self, *, is_wanted: bool = True) -> Iterator[None]:
        """Of this thread's forwards in inference mode; other threads and gradients are left alone."""
        if self._multiply is None or not is_wanted:
            yield
            return
        with _Products(self._multiply):
            yield

    @torch.inference_mode()
    def _is_exact(self, model: PreTrainedModel, vocabulary: int) -> bool:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(vocabulary, (2, _TRIED), generator=generator)
        usual = model(input_ids=ids, use_cache=False).logits
        try:
            with self.products():
                ours = model(input_ids=ids, use_cache=False).logits
        except RuntimeError:  # a kernel for these shapes is missing on this processor
            return False
        return bool((usual - ours).abs().max() <= _TOLERANCE * (1 + usual.abs().max()))
