"""How facts and questions are worded: the sentence forms of every attribute.

It exists apart from the facts so that a reader can see, on one page, every kind of sentence the model was
trained on. In every form the value follows the subject, as it does in most runbooks.
"""

import random
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Forms:
    """The sentences that can state one attribute. `{e}` is the entity, `{v}` the value."""

    statements: tuple[str, ...]  # full sentences; the canonical one is added in front
    continuation: str  # after a sentence about the same entity
    question: str  # beside the canonical "What is the ... of the ...?"


FORMS: dict[str, Forms] = {
    "port": Forms(
        statements=(
            "The {e} listens on port {v}.",
            "Clients reach the {e} on port {v}.",
            "Traffic for the {e} goes to port {v}.",
        ),
        continuation="It listens on port {v}.",
        question="Which port does the {e} listen on?",
    ),
    "owner": Forms(
        statements=(
            "The {e} belongs to {v}.",
            "The {e} is owned by {v}.",
            "Changes to the {e} are approved by {v}.",
        ),
        continuation="It belongs to {v}.",
        question="Who owns the {e}?",
    ),
    "timeout": Forms(
        statements=(
            "The {e} gives up after {v}.",
            "Calls to the {e} time out after {v}.",
            "Requests to the {e} are dropped after {v}.",
        ),
        continuation="It gives up after {v}.",
        question="After how long does the {e} time out?",
    ),
    "region": Forms(
        statements=(
            "The {e} runs in {v}.",
            "The {e} is hosted in {v}.",
            "All nodes of the {e} stand in {v}.",
        ),
        continuation="It runs in {v}.",
        question="Where does the {e} run?",
    ),
    "handover time": Forms(
        statements=(
            "The {e} is handed over at {v}.",
            "On-call for the {e} changes at {v}.",
            "The on-call shift of the {e} starts at {v}.",
        ),
        continuation="It is handed over at {v}.",
        question="When does on-call for the {e} change?",
    ),
    "error code": Forms(
        statements=(
            "The {e} reports failures as {v}.",
            "When the {e} fails it logs {v}.",
            "A failure of the {e} is logged as {v}.",
        ),
        continuation="It reports failures as {v}.",
        question="Which error code does the {e} report?",
    ),
    "rate limit": Forms(
        statements=(
            "The {e} accepts at most {v}.",
            "The {e} is throttled at {v}.",
            "Traffic to the {e} is capped at {v}.",
        ),
        continuation="It accepts at most {v}.",
        question="How much traffic does the {e} accept?",
    ),
    "alert channel": Forms(
        statements=(
            "The {e} pages {v}.",
            "Alerts of the {e} go to {v}.",
            "Incidents on the {e} are posted in {v}.",
        ),
        continuation="It pages {v}.",
        question="Where do alerts of the {e} go?",
    ),
    "fallback": Forms(
        statements=(
            "The {e} falls back to {v}.",
            "When the {e} is down, use {v}.",
            "Traffic of the {e} moves to {v}.",
        ),
        continuation="It falls back to {v}.",
        question="Where does the {e} fall back to?",
    ),
    "retention": Forms(
        statements=(
            "The {e} keeps data for {v}.",
            "Entries in the {e} expire after {v}.",
            "Records stay in the {e} for {v}.",
        ),
        continuation="It keeps data for {v}.",
        question="How long does the {e} keep data?",
    ),
    "quota": Forms(
        statements=(
            "The {e} may hold up to {v}.",
            "The {e} is full at {v}.",
            "Space in the {e} is limited to {v}.",
        ),
        continuation="It may hold up to {v}.",
        question="How much data may the {e} hold?",
    ),
    "backup time": Forms(
        statements=(
            "The {e} is backed up at {v}.",
            "A snapshot of the {e} is taken at {v}.",
            "Nightly copies of the {e} start at {v}.",
        ),
        continuation="It is backed up at {v}.",
        question="When is the {e} backed up?",
    ),
    "version": Forms(
        statements=(
            "The {e} runs release {v}.",
            "The {e} was upgraded to release {v}.",
            "Nodes of the {e} are pinned to release {v}.",
        ),
        continuation="It runs release {v}.",
        question="Which release does the {e} run?",
    ),
}

INTRODUCTIONS = (
    "The {e} is part of the shared platform.",
    "The {e} was moved to the new cluster last spring.",
    "This page describes the {e}.",
    "The {e} is watched around the clock.",
)
FILLERS = (
    "Ask before restarting it.",
    "Check the dashboard first.",
    "It is reviewed every quarter.",
    "No other change is planned.",
    "Read the post-mortem before changing it.",
)


def answer_parts(attribute: str, entity: str, value: str) -> tuple[str, str, str]:
    """The answer sentence in three parts; the middle one is exactly the value."""
    return f"The {attribute} of the {entity} is ", value, "."


def statements(attribute: str) -> tuple[str, ...]:
    """Every full-sentence form of an attribute, the canonical (answer-like) one first."""
    return (f"The {attribute} of the {{e}} is {{v}}.", *FORMS[attribute].statements)


def continuations(attribute: str) -> tuple[str, ...]:
    """Forms that lean on the sentence before them for their subject."""
    return (f"Its {attribute} is {{v}}.", FORMS[attribute].continuation)


def sentence_forms(attribute: str) -> tuple[str, ...]:
    """Every sentence that can state an attribute; a form's number is its place here."""
    return (*statements(attribute), *continuations(attribute))


@cache
def withheld(attribute: str) -> frozenset[tuple[int, int]]:
    """Pairs (number of a sentence form, number of a question form) that no training text brings together.

    About one pair in six, never with the canonical sentence; the evaluations ask exactly these.
    """
    rng = random.Random(f"withheld {attribute}")
    forms = rng.sample(range(1, len(sentence_forms(attribute))), 2)
    return frozenset((form, rng.randrange(len(questions(attribute)))) for form in forms)


def questions(attribute: str) -> tuple[str, ...]:
    """Every way to ask for an attribute, the canonical one first."""
    word = "Who" if attribute == "owner" else "What"
    return (f"{word} is the {attribute} of the {{e}}?", FORMS[attribute].question)


def two_hop_questions(attribute: str) -> tuple[str, ...]:
    """Every way to ask for an attribute of the fallback of an entity; the answer first names the fallback."""
    word = "Who" if attribute == "owner" else "What"
    return (
        f"{word} is the {attribute} of the fallback of the {{e}}?",
        f"When the {{e}} is down, {word.lower()} is the {attribute} of its fallback?",
    )


REPEAT_REQUEST = " Say it twice."  # after a question: the answer gives the value once more


def repetition(value: str) -> tuple[str, str, str]:
    """The words that repeat a value, in three parts like ``answer_parts``."""
    return "Once more, ", value, "."


def join_questions(parts: list[str]) -> str:
    """One question line out of one to three questions: `What is A, and what is B?`."""
    lowered = [parts[0], *(part[0].lower() + part[1:] for part in parts[1:])]
    return ", and ".join(part.rstrip("?") for part in lowered) + "?"
