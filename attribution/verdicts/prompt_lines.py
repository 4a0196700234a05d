"""What the prompt itself, outside the chunks, did to a span: lines that hold its value, or ask for memory.

It exists because instructions, examples and history are prompt too: a value copied from last week's turn
looks like memory to whoever looks at the chunks only.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.support import examine_apart
from ragblame.records import Alignment, Chunk, Message, PromptLine, Span, SupportState, Trace

MAX_PART: Final = 20_000  # code points read of one part between two chunks
MAX_PARTS: Final = 40
MAX_LINES: Final = 5  # named of one span
_QUESTION: Final = 12  # code points of a question that is cut out of the prompt wherever it stands

_MEMORY = re.compile(
    r"\b(?:from|use|using|trust|(?:rely|relying|based|draw|drawing) on)\s+"
    r"(?:(?:only|just|solely)\s+)?(?:your\s+)?(?:own\s+)?"
    r"(?:memory|(?:general|prior|own|background|internal|world|parametric)\s+knowledge|training(?:\s+data)?)\b"
    r"|\bwhat\s+you\s+(?:already\s+)?(?:know|remember)\b"
    r"|\b(?:ignore|ignoring|disregard|disregarding|do\s+not\s+(?:use|read|trust|rely\s+on)"
    r"|don't\s+(?:use|read|trust|rely\s+on)|without\s+(?:using|reading|looking\s+at))\s+"
    r"(?:(?:the|any|all|these|this|of|given|provided|retrieved)\s+){0,4}"
    r"(?:contexts?|documents?|passages?|chunks?|sources?|excerpts?)\b",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"\b(?:not|never|n't|no|nor|without|avoid|instead\s+of|rather\s+than)\b[^.!?;,]{0,30}$", re.IGNORECASE
)
_CONDITION = re.compile(r"\b(?:if|unless|when|where|otherwise|only\s+then)\b", re.IGNORECASE)


def with_prompt_lines(
    trace: Trace, spans: Sequence[Span], findings: Sequence[Finding], alignments: Sequence[Alignment]
) -> tuple[Finding, ...]:
    """The findings, with the lines of the prompt at fault for what no chunk in it says.

    ``alignments``: where the chunks stand in ``trace.prompt``. Never raises on any text.
    """
    doubtful = [
        finding.support.state in (SupportState.ABSENT, SupportState.CONTRADICTED) for finding in findings
    ]
    if not any(doubtful) or not trace.prompt:
        return tuple(findings)
    parts = list(_parts_outside(trace, alignments))[-MAX_PARTS:]  # the last are the closest to the answer
    told = list(_asking_for_memory(trace.prompt, parts))
    result = []
    for span, finding, is_doubtful in zip(spans, findings, doubtful, strict=True):
        if not is_doubtful:
            result.append(finding)
            continue
        # "if the context does not tell, use your knowledge" excuses only what the context does not tell
        is_told = finding.support.state is SupportState.CONTRADICTED
        telling = [line for line, is_conditional in told if not (is_conditional and is_told)]
        copied = _copied_from(trace, span, parts)
        result.append(replace(finding, copied_from=copied[:MAX_LINES], told_by=tuple(telling[:MAX_LINES])))
    return tuple(result)


def _parts_outside(trace: Trace, alignments: Sequence[Alignment]) -> Iterator[PromptLine]:
    """The prompt without its chunks and without the question."""
    question = trace.question.strip()
    for number, message in enumerate(trace.prompt):
        taken = [
            (alignment.start, alignment.end)
            for alignment in alignments
            if alignment.message == number and alignment.start is not None and alignment.end is not None
        ]
        if len(question) >= _QUESTION:
            taken += [
                (found.start(), found.end()) for found in re.finditer(re.escape(question), message.text)
            ]
        at = 0
        for start, end in [*sorted(taken), (len(message.text), len(message.text))]:
            if message.text[at:start].strip():
                yield PromptLine(message=number, start=at, end=min(start, at + MAX_PART))
            at = max(at, end)


def _copied_from(trace: Trace, span: Span, parts: Sequence[PromptLine]) -> tuple[PromptLine, ...]:
    """Sentences outside the chunks that say the span, of its own subject."""
    texts = [
        Chunk(position=place, text=trace.prompt[part.message].text[part.start : part.end])
        for place, part in enumerate(parts)
    ]
    if not texts:
        return ()
    lines = []
    for part, finding in zip(
        parts, examine_apart(trace.question, trace.answer, span, texts, trace.chunks), strict=True
    ):
        support = finding.support
        if (
            support.state is not SupportState.ENTAILED
            or support.evidence_start is None
            or not finding.is_sure
        ):
            continue
        assert support.evidence_end is not None
        lines.append(
            PromptLine(
                message=part.message,
                start=part.start + support.evidence_start,
                end=part.start + support.evidence_end,
            )
        )
    return tuple(lines)


def _asking_for_memory(
    prompt: Sequence[Message], parts: Sequence[PromptLine]
) -> Iterator[tuple[PromptLine, bool]]:
    """Sentences that ask for an answer from memory, and whether only under a condition."""
    for part in parts:
        text = prompt[part.message].text[part.start : part.end]
        for low, high in split_sentences(text):
            sentence = text[low:high]
            hits = _MEMORY.finditer(sentence)
            if all(_DENIED.search(sentence[: hit.start()]) for hit in hits):
                continue
            blank = len(sentence) - len(sentence.lstrip())
            line = PromptLine(
                message=part.message,
                start=part.start + low + blank,
                end=part.start + low + len(sentence.rstrip()),
            )
            yield line, _CONDITION.search(sentence) is not None
