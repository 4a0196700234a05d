"""Linear layers by oneDNN: faster, and otherwise the library's own forward."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from ragblame.attribution import onednn
from ragblame.attribution.onednn import OneDnn
from tests.tiny_models import FAMILIES, MORE_FAMILIES, STATEFUL, tiny_model

IDS = torch.tensor([[5, 9, 2, 7, 7, 1, 3, 8, 4, 6, 2, 9, 5, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4]])

if onednn.operator() is None:
    pytest.skip("this torch was built without oneDNN", allow_module_level=True)


def of(model: PreTrainedModel) -> OneDnn:
    """For a model of any width, on any processor."""
    return OneDnn(model, always=True)


class Spy:
    """The operator, or another, and how often it was asked."""

    def __init__(self, multiply: Callable[..., Tensor]) -> None:
        self.calls = 0
        self._multiply = multiply

    def __call__(self, *args: Any) -> Tensor:
        """As the operator."""
        self.calls += 1
        return self._multiply(*args)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    """The real operator, counted."""
    real = onednn.operator()
    assert real is not None
    found = Spy(real)
    monkeypatch.setattr(onednn, "operator", lambda: found)
    return found


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES, *STATEFUL])
def test_logits_stay(family: str) -> None:
    """In every family the logits are the library's, to rounding, and afterwards nothing is left behind."""
    model = tiny_model(family, attention=None)
    ours = of(model)
    assert ours.is_used
    with torch.inference_mode():
        usual = model(input_ids=IDS, use_cache=False).logits
        with ours.products():
            found = model(input_ids=IDS, use_cache=False).logits
        assert torch.allclose(found, usual, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(input_ids=IDS, use_cache=False).logits, usual)


def test_every_linear_layer_goes_by_it(spy: Spy) -> None:
    """Seven layers a block and the head, in two blocks of a Llama: fifteen products a forward."""
    model = tiny_model("llama")
    ours, before = of(model), spy.calls
    with torch.inference_mode(), ours.products():
        model(input_ids=IDS, use_cache=False)
    count = sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert spy.calls - before == count


def test_gradients_are_left_alone(spy: Spy) -> None:
    """The operator has no gradient: outside of inference mode the library multiplies, and gradients flow."""
    model = tiny_model("llama")
    ours, before = of(model), spy.calls
    embedded = model.get_input_embeddings()(IDS).detach().requires_grad_()
    with ours.products():
        logits = model(inputs_embeds=embedded, use_cache=False).logits
    (gradient,) = torch.autograd.grad(logits.sum(), embedded)
    assert spy.calls == before
    assert float(gradient.abs().sum()) > 0


def test_other_numbers_are_left_alone(spy: Spy) -> None:
    """Half precision, double precision and empty rows are multiplied as the library does."""
    ours = of(tiny_model("llama"))
    before = spy.calls
    with torch.inference_mode(), ours.products():
        for dtype in (torch.bfloat16, torch.float64):
            linear(torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype))
        assert linear(torch.ones(0, 3), torch.ones(4, 3)).shape == (0, 4)
        assert spy.calls == before
        linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4))
    assert spy.calls == before + 1


def test_another_thread_multiplies_as_ever(spy: Spy) -> None:
    """While one thread goes by oneDNN, another that runs the same model does not."""
    model = tiny_model("llama")
    ours = of(model)

    def run() -> None:
        with torch.inference_mode():
            model(input_ids=IDS, use_cache=False)

    with ours.products():
        before = spy.calls
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert spy.calls == before


def test_a_wrong_product_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that multiplies wrongly, or refuses, is not used: tried when the scorer is made."""
    model = tiny_model("llama")
    monkeypatch.setattr(onednn, "operator", lambda: lambda x, weight, bias, *rest: linear(x, weight) * 1.1)
    assert not of(model).is_used

    def refuse(*args: Any) -> Tensor:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(onednn, "operator", lambda: refuse)
    assert not of(model).is_used


@pytest.mark.parametrize(("capability", "is_used"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_it_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch, capability: str, is_used: bool) -> None:
    """Wide models on processors with AVX-512; elsewhere the library's own products are faster."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    narrow = tiny_model("llama")
    assert not OneDnn(narrow).is_used
    monkeypatch.setattr(onednn, "LEAST_WIDTH", narrow.config.hidden_size)
    assert OneDnn(narrow).is_used is is_used
    assert not of(narrow.bfloat16()).is_used
