"""The running average of weights while they learn: what is measured and kept instead of the last step's."""

from typing import Final

import torch
from torch import nn

AVERAGED: Final = 0.998  # decay by step


class Average:
    """The running average of weights, to be read in their place."""

    def __init__(self, module: nn.Module) -> None:
        self._now = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self._kept = {name: value.detach().clone() for name, value in self._now.items()}

    @torch.no_grad()
    def add(self, step: int) -> None:
        """After every step; the first ones count for more."""
        decay = min(AVERAGED, (1 + step) / (10 + step))
        for name, value in self._now.items():
            self._kept[name].mul_(decay).add_(value, alpha=1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Put the average in place, and with the next call the weights."""
        for name, value in self._now.items():
            kept = self._kept[name].clone()
            self._kept[name].copy_(value)
            value.copy_(kept)
