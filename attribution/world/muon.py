"""Muon in float32, matrices of one shape together: the optimiser of the hidden matrices on an ordinary CPU.

It exists because ``torch.optim.Muon`` orthogonalises in bfloat16, matrix by matrix, which on a CPU without
bfloat16 arithmetic takes ten times as long as the forward and backward pass together.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration (Jordan et al. 2024, "Muon")
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest semi-orthogonal matrices, roughly: singular values end near 1 (0.7 to 1.2).

    ``matrices``: [matrix, row, column]. Five Newton-Schulz steps with the coefficients of Jordan et al.
    (2024).
    """
    a, b, c = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if is_tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, then orthogonalised updates of the root mean square that AdamW's would have.

    The update is that of ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``: Nesterov momentum, decoupled
    weight decay, step size ``lr * 0.2 * sqrt(longer side)`` (Liu et al. 2025); only the arithmetic differs.
    """

    def __init__(
        self,
        weights: Iterable[Tensor],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        if closure is not None:
            raise ValueError("this optimiser evaluates no closure; call backward() before step()")
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape.setdefault(weight.shape, []).append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        rate, momentum = group["lr"], group["momentum"]
        updates = []
        for weight in weights:
            assert weight.grad is not None
            state = self.state[weight]
            average = state.setdefault("momentum_buffer", torch.zeros_like(weight))
            average.lerp_(weight.grad, 1 - momentum)
            updates.append(weight.grad.lerp(average, momentum))
        directions = orthogonalise(torch.stack(updates))
        size = rate * 0.2 * max(weights[0].shape) ** 0.5
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - rate * group["weight_decay"]).add_(direction, alpha=-size)
