"""The steps of another tracer's trace, whatever it calls them, and the tree they make."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from ragblame.records import Message
from ragblame.traces import new_trace_id
from ragblame.ui.import_values import Document, documents_of, passed_documents

_NAMESPACE: Final = uuid5(NAMESPACE_URL, "ragblame:import")
_RANDOM_BITS: Final = (1 << 62) - 1  # of a version 7 UUID
_MAX_DEPTH: Final = 200  # parents followed; deeper is a cycle


class StepKind(StrEnum):
    """What a step did, as far as it matters here."""

    CHAIN = "chain"
    RETRIEVER = "retriever"
    RERANKER = "reranker"
    MODEL = "model"
    TOOL = "tool"
    JUDGE = "judge"  # evaluators and guardrails look at an answer, they make none


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One span or observation."""

    trace: str
    id: str
    parent: str | None = None
    kind: StepKind = StepKind.CHAIN
    name: str = ""
    input: Any = None  # text or JSON value
    output: Any = None
    documents: tuple[Document, ...] = ()
    prompt: tuple[Message, ...] = ()
    text: str | None = None  # what a model said
    is_tool_call: bool = False
    model: str | None = None
    provider: str | None = None
    is_ok: bool = True
    error: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    service: str | None = None  # the project or service it was recorded in
    is_record: bool = False  # the tracer's record of the whole trace, which does not say how it ended
    own: Mapping[str, Any] = field(default_factory=dict)  # what an export of ours wrote
    in_retriever: bool = False  # set by the tree: the name that `choose_model_run` knows


def import_identity(dataset: str, row_id: str | int) -> UUID:
    """The identity of what was imported, kept in the trace's ``root_run_id``."""
    return uuid5(_NAMESPACE, json.dumps([dataset, row_id], ensure_ascii=True))


def settled_trace_id(identity: UUID, at: datetime) -> UUID:
    """A version 7 UUID of that moment whose random bits are the identity's: the same on every import."""
    digest = int.from_bytes(hashlib.sha256(identity.bytes).digest()[:8], "big")
    return UUID(int=(new_trace_id(at).int & ~_RANDOM_BITS) | (digest & _RANDOM_BITS))


class StepTree:
    """The steps by their parents."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = sorted(steps, key=lambda step: step.started or datetime.max.replace(tzinfo=UTC))
        self._by_id = {step.id: step for step in self.steps}

    def above(self, step: Step) -> Iterator[Step]:
        """The parents of a step, the nearest first; a cycle ends."""
        for _ in range(_MAX_DEPTH):
            parent = self._by_id.get(step.parent) if step.parent is not None else None
            if parent is None or parent is step:
                return
            yield parent
            step = parent

    def is_under(self, step: Step, *kinds: StepKind) -> bool:
        """Whether a step of such a kind stands above it."""
        return any(parent.kind in kinds for parent in self.above(step))

    def outermost(self, *, is_run: bool = False) -> Step | None:
        """The step that was asked and answered: the nearest to the top with an input and an output.

        With ``is_run`` the tracer's record of the whole trace does not count.
        """
        useful = [
            step
            for step in self.steps
            if not (is_run and step.is_record)
            and step.kind is not StepKind.JUDGE
            and not self.is_under(step, StepKind.JUDGE)
        ]
        if not useful:
            return None

        def distance(step: Step) -> tuple[bool, bool, int]:
            is_silent = step.output is None and step.is_ok
            return is_silent, step.input is None, sum(1 for _ in self.above(step))

        return min(useful, key=distance)  # of equals the earliest

    def records(self) -> list[Step]:
        """The tracer's records of the whole trace."""
        return [step for step in self.steps if step.is_record]

    def models(self) -> list[Step]:
        """Every model run but those of judges; those inside retrievers are marked."""
        return [
            replace(step, in_retriever=True)
            if self.is_under(step, StepKind.RETRIEVER, StepKind.RERANKER)
            else step
            for step in self.steps
            if step.kind is StepKind.MODEL and not self.is_under(step, StepKind.JUDGE)
        ]

    def documents(self) -> tuple[list[tuple[int, Document]], list[Step]]:
        """What reached the chain, each with its rank, and the searches that found it.

        The outermost retrievers' results; where a reranker came after them, its own; where there was neither,
        documents that passed between steps.
        """
        found = [
            step
            for step in self.steps
            if step.kind in (StepKind.RETRIEVER, StepKind.RERANKER)
            and not self.is_under(step, StepKind.RETRIEVER, StepKind.RERANKER, StepKind.JUDGE)
        ]
        searches = [step for step in found if step.kind is StepKind.RETRIEVER]
        rerankers = [step for step in found if step.kind is StepKind.RERANKER and step.documents]
        chosen = rerankers[-1:] or [step for step in searches if step.documents or documents_of(step.output)]
        ranked = [
            pair for step in chosen for pair in enumerate(step.documents or documents_of(step.output), 1)
        ]
        if not ranked:
            passed: dict[tuple[str | None, str], Document] = {}
            for step in self.steps:
                for value in (step.input, step.output):
                    for document in passed_documents(value):
                        passed.setdefault((document.identity, document.text), document)
            ranked = list(enumerate(passed.values(), 1))
        return ranked, searches or rerankers
