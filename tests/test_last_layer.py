"""The last layer is computed for the rows that are read, and nothing that is read changes."""

import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ragblame.attribution.last_layer import LastLayer
from tests.tiny_models import FAMILIES, MORE_FAMILIES, STATEFUL, tiny_model

FIRST = 9  # rows from here on are read
IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 3, 8, 4, 6, 2, 9, 5, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4]])


def gradients(model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Logits of the rows that are read, and what moves them: gradients of their sum by the embeddings."""
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, use_cache=False).logits[:, FIRST:]
    (gradient,) = torch.autograd.grad(logits.logsumexp(-1).sum(), embedded)
    return logits.detach(), gradient


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, *STATEFUL])
def test_predictions_and_gradients_stay(family: str) -> None:
    """In every family, whatever is spared: same logits of the rows read, same gradients."""
    model = tiny_model(family, attention=None)
    layer = LastLayer(model)
    assert layer.modules or family in STATEFUL
    whole = gradients(model)
    with layer.rows_from(FIRST):
        spared = gradients(model)
    for one, other in zip(whole, spared, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)
    assert torch.equal(gradients(model)[0], whole[0])  # nothing is left behind


def test_rows_that_are_not_read_are_not_computed() -> None:
    """The feed-forward network of the last layer sees the rows that are read, that of others all."""
    model = tiny_model("llama")
    seen: list[int] = []
    layer = LastLayer(model)
    for block in model.model.layers:
        block.mlp.down_proj.register_forward_hook(
            lambda module, inputs, output: seen.append(inputs[0].shape[1])
        )
    with layer.rows_from(FIRST), torch.inference_mode():
        model(input_ids=IDS)
    rows = IDS.shape[1]
    assert seen == [rows, rows, rows - FIRST]


class Mixing(nn.Linear):
    """A projection by name that lets rows see each other, as a convolution over time would."""

    def forward(self, states: Tensor) -> Tensor:
        """Each row with all before it."""
        return super().forward(states.cumsum(dim=1))


def test_a_model_that_mixes_rows_is_left_whole() -> None:
    """Names do not decide alone: where the trial changes a prediction, nothing is spared."""
    model = tiny_model("llama")
    old = model.model.layers[-1].self_attn.q_proj
    mixing = Mixing(old.in_features, old.out_features, bias=False)
    mixing.load_state_dict(old.state_dict())
    model.model.layers[-1].self_attn.q_proj = mixing
    assert LastLayer(model).modules == []


def test_another_thread_gets_every_row() -> None:
    """While one thread reads some rows, another that runs the same model reads all."""
    model = tiny_model("llama")
    layer = LastLayer(model)
    with torch.inference_mode():
        whole = model(input_ids=IDS).logits
    found: list[Tensor] = []
    threads: list[threading.Thread] = []

    def run() -> None:
        with torch.inference_mode():
            found.append(model(input_ids=IDS).logits)

    def interrupt(*_: object) -> None:  # in the middle of the module that sees some rows
        if not threads:
            threads.append(threading.Thread(target=run))
            threads[0].start()
            threads[0].join()

    model.model.layers[-1].mlp.act_fn.register_forward_hook(interrupt)
    with layer.rows_from(FIRST), torch.inference_mode():
        spared = model(input_ids=IDS).logits
    assert torch.allclose(found[0], whole, atol=1e-5)
    assert torch.allclose(spared[:, FIRST:], whole[:, FIRST:], atol=1e-5)
