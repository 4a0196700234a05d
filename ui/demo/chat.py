"""The shipped small model as a LangChain chat model, so that the demo's chain is a real one.

It exists because the demo must answer with no network: the demo's host chain is built of LangChain parts, and
this is its model. It decodes greedily, so a run can be repeated.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import PrivateAttr

from ragblame.attribution.world import shipped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_NAME = "ragblame-small"
ROLES = {SystemMessage: "system", HumanMessage: "user", AIMessage: "assistant"}


class SmallChatModel(BaseChatModel):
    """Greedy decoding with a causal LM folder that carries a chat template."""

    folder: Path | None = None  # None: the shipped model
    max_new_tokens: int = 96

    _model: "PreTrainedModel | None" = PrivateAttr(default=None)
    _tokenizer: "PreTrainedTokenizerBase | None" = PrivateAttr(default=None)

    @property
    def _llm_type(self) -> str:
        return MODEL_NAME

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": MODEL_NAME, "max_new_tokens": self.max_new_tokens}

    def _load(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        if self._model is None or self._tokenizer is None:
            from ragblame.attribution import loading

            self._model, self._tokenizer, _ = loading.load(str(self.folder or shipped.model_path()))
        return self._model, self._tokenizer

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """One greedy answer. The prompt is exactly what the tokenizer's chat template renders."""
        import torch

        model, tokenizer = self._load()
        turns = [{"role": ROLES.get(type(message), "user"), "content": message.text} for message in messages]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
            output = generate(**prompt, max_new_tokens=self.max_new_tokens, do_sample=False)
        generated = output[0, prompt["input_ids"].shape[1] :]
        text = str(tokenizer.decode(generated, skip_special_tokens=True))
        for word in stop or []:
            text = text.split(word, 1)[0]
        message = AIMessage(
            content=text.strip(),
            response_metadata={"model_name": MODEL_NAME, "model_provider": "ragblame"},
            usage_metadata={
                "input_tokens": prompt["input_ids"].shape[1],
                "output_tokens": len(generated),
                "total_tokens": prompt["input_ids"].shape[1] + len(generated),
            },
        )
        return ChatResult(generations=[ChatGeneration(message=message)])
