"""Token embeddings as leaves of the autograd graph of one forward: where gradient methods read and write.

Kept apart from the methods because families differ here: some scale embeddings, some add positions, one
normalises them before the first layer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ragblame.attribution.scorer import TransformersScorer
from ragblame.errors import UnsupportedArchitectureError
from ragblame.records import Method


class Reading:
    """The embedded tokens of one forward, and what enters the first layer, both in the autograd graph."""

    def __init__(self, family: str) -> None:
        self.family = family
        self.embedded: list[Tensor] = []  # [1, T, dim], the leaf
        self.entered: list[Tensor] = []  # [1, T, dim], after scaling, norm and position

    @property
    def is_normalised(self) -> bool:
        """A layer norm is the last thing between embedding and first layer."""
        maker = self.entered[0].grad_fn
        return maker is not None and "Norm" in maker.name()

    def of(self, score: Tensor, *, is_last: bool) -> tuple[Tensor, Tensor]:
        """Input x gradient and norm of the gradient of a score for each token, each float32, shape [1, T]."""
        embedded, entered = self.embedded[0], self.entered[0]
        at_embedding, at_layer = torch.autograd.grad(score, [embedded, entered], retain_graph=not is_last)
        there, slope = (entered.detach(), at_layer) if self.is_normalised else (embedded, at_embedding)
        return (there.float() * slope.float()).sum(dim=-1), at_layer.float().norm(dim=-1)

    def settings(self, method: Method) -> dict[str, str]:
        """What the settings' hash must know of where the product was taken."""
        moved = self.is_normalised and method is not Method.GRADIENT_NORM
        return {"at": "behind the embeddings' norm"} if moved else {}

    def notes(self, method: Method) -> tuple[str, ...]:
        """The same for a reader."""
        if not self.settings(method):
            return ()
        return (
            f"Model type {self.family!r} normalises its embeddings before the first layer, so {method.value} "
            "was taken behind that norm.",
        )


@contextmanager
def reading_of(scorer: TransformersScorer, method: Method) -> Iterator[Reading]:
    """Watch one forward with the token embeddings as leaves of the graph."""
    reading = Reading(scorer.family)

    def keep(_: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        reading.entered.append(arguments[0] if arguments else named["hidden_states"])

    handle = first_layer(scorer, method).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with embeddings(scorer, lambda own: own.detach().requires_grad_()) as reading.embedded:
            yield reading
    finally:
        handle.remove()


@contextmanager
def embeddings(scorer: TransformersScorer, change: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Replace what the token embedding gives by ``change`` of it; yields the replacements, in order."""
    given: list[Tensor] = []

    def replace(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        given.append(change(output))
        return given[-1]

    handle = scorer.model.get_input_embeddings().register_forward_hook(replace)
    try:
        yield given
    finally:
        handle.remove()


def first_layer(scorer: TransformersScorer, method: Method) -> nn.Module:
    """The block that reads the embedded tokens first."""
    depth = scorer.model.config.get_text_config().num_hidden_layers
    for module in scorer.model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module[0]
    raise UnsupportedArchitectureError(
        f"{method.value} cannot serve model type {scorer.family!r}: its list of {depth} layers was "
        "not found; use shapley"
    )
