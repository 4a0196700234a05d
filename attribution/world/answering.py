"""Free greedy generation of answers, and reading the value of each claim out of an answer.

It exists because accuracy under teacher forcing flatters (the prototype: 0.96 against 0.91): every figure
this project gives about the small model comes from what the model really writes.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from ragblame.attribution.world.facts import Claim

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = 32  # prompts generated together
LONGEST_ANSWER = 96  # tokens
# A version has a full stop inside, so a sentence ends where the next one starts.
_END = r"\.(?= The | Once more, |$)"
_STATEMENT = re.compile(
    rf"The (?P<attribute>[a-z ]+?) of the (?P<entity>[A-Z]\w+ [a-z]+) is (?P<value>.+?){_END}"
)
_REPETITION = re.compile(rf"Once more, (?P<value>.+?){_END}")


def generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]
) -> list[str]:
    """One greedy answer per prompt, in the prompts' order, without the space and line break around it."""
    import torch

    generate_ids = cast("Callable[..., torch.Tensor]", model.generate)  # transformers leaves it half typed
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), BATCH):
        indexes = order[start : start + BATCH]
        batch = tokenizer(
            [prompts[index] for index in indexes],
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        width = batch["input_ids"].shape[1]
        with torch.inference_mode():
            output = generate_ids(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=LONGEST_ANSWER,
                do_sample=False,
            )
        for index, row in zip(indexes, output, strict=True):
            answers[index] = str(tokenizer.decode(row[width:], skip_special_tokens=True)).strip()
    return answers


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One sentence of an answer, read: what it says about whom, and where its value stands."""

    attribute: str
    entity: str  # "Kestrel gateway"
    value: str
    start: int  # code points of the value in the answer
    end: int


def read_statements(answer: str) -> list[Statement]:
    """Every sentence of an answer that has the form the model was trained on, in order."""
    return [
        Statement(
            attribute=match["attribute"],
            entity=match["entity"],
            value=match["value"],
            start=match.start("value"),
            end=match.end("value"),
        )
        for match in _STATEMENT.finditer(answer)
    ]


def read_repetition(answer: str) -> tuple[int, int] | None:
    """Where an answer gives its value a second time, in code points; None when it does not."""
    match = _REPETITION.search(answer)
    return None if match is None else match.span("value")


def stated_values(answer: str, claims: Sequence[Claim]) -> list[str | None]:
    """The value the answer gives for each claim; None where no sentence names subject and attribute."""
    said: dict[tuple[str, str], str] = {}
    for one in read_statements(answer):
        said.setdefault((one.attribute, one.entity), one.value)
    return [said.get((claim.attribute, str(claim.entity))) for claim in claims]
