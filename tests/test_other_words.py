"""Evidence in words that no rule matches is found by what the model writes where it reads it, only then."""

import pytest

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.debugger import Debugger
from ragblame.attribution.inputs import trace_of
from ragblame.attribution.layout import Layout, build_layout
from ragblame.attribution.methods.rewriting import with_text, without
from ragblame.attribution.scorer import TransformersScorer
from ragblame.attribution.spans import split_spans
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.other_words import RULE, evidence_in, place_of, with_conflicts
from ragblame.records import Cause, Chunk, Span, Support, SupportState

QUESTION = "What is the timeout of the Kestrel gateway?"
ANSWER = "The timeout of the Kestrel gateway is 9037 ms."
PARAPHRASE = "The Kestrel gateway gives up after 4877 ms."
OTHER = "The Heron cache is hosted in north Selby."
DOUBTFUL = Finding(support=Support(span=0, state=SupportState.CONTRADICTED, rule="another"), is_sure=False)


@pytest.fixture(scope="module")
def debugger() -> Debugger:
    """The shipped model as the scorer."""
    return Debugger.from_pretrained(threads=1)


def lay_out(
    debugger: Debugger, *chunks: str, answer: str = ANSWER
) -> tuple[TransformersScorer, Layout, Span]:
    """The scorer, the layout, and the span that holds the value."""
    scorer = debugger.scorer
    assert scorer is not None
    trace = trace_of(QUESTION, list(chunks), answer, None)
    layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), scorer.tokenizer)
    return scorer, layout, split_spans(answer, QUESTION)[-1]


def test_the_model_writes_what_a_paraphrase_states(debugger: Debugger) -> None:
    """Put in place of the chunks, the row is read; a row about something else is not."""
    scorer, layout, span = lay_out(debugger, OTHER, "The Kestrel gateway runs in Oslo.")
    before = scorer.cost.forwards
    elsewhere = "The Kestrel gateway pages coral-lynx."
    written = with_text(scorer, layout, span, [PARAPHRASE, elsewhere])
    assert written[0] == "4877 ms"
    assert written[1] is not None
    assert place_of(written[1], elsewhere) is None
    assert scorer.cost.forwards > before


def test_without_the_supporting_chunk_the_model_writes_what_the_other_says(debugger: Debugger) -> None:
    """Two chunks that word a fact differently disagree, though no rule knows that they mean the same."""
    said = "The timeout of the Kestrel gateway is 9037 ms."
    scorer, layout, span = lay_out(debugger, said, PARAPHRASE)
    assert without(scorer, layout, span, [0]) == "4877 ms"
    explanation = debugger.explain(question=QUESTION, chunks=[said, PARAPHRASE], answer=ANSWER)
    assert explanation.verdicts[-1].cause is Cause.CONFLICTING_CHUNKS
    assert "4877 ms" in explanation.verdicts[-1].explanation
    alone = debugger.explain(question=QUESTION, chunks=[said, OTHER], answer=ANSWER)
    assert alone.verdicts[-1].cause is None


def test_a_prompt_without_chunks_has_no_place_for_one(debugger: Debugger) -> None:
    """Nothing is read then, and it is said so by None."""
    scorer, layout, span = lay_out(debugger)
    assert with_text(scorer, layout, span, [PARAPHRASE]) == [None]


@pytest.mark.parametrize(
    ("written", "is_evidence"),
    [
        ("4877 ms", True),
        ("4877  MS", True),  # spaces and case are no other value
        ("9037 ms", False),  # the span's own words: the model did not read it
        ("877 ms", False),  # within a number
        ("5000 ms", False),
        (None, False),
    ],
)
def test_what_is_written_must_stand_in_the_text_and_differ(written: str | None, is_evidence: bool) -> None:
    """The sentence around it is the evidence, with the value as the text writes it."""
    text = f"Ask first. {PARAPHRASE}"
    found = evidence_in(text, written, "9037 ms", DOUBTFUL)
    assert (found is not None) is is_evidence
    if found is not None:
        support = found.support
        assert text[support.evidence_start : support.evidence_end] == PARAPHRASE
        assert (support.stated, support.rule, found.is_sure) == ("4877 ms", RULE, True)


def test_only_doubtful_chunks_become_conflicts() -> None:
    """A chunk about another subject may hold the words too, and says nothing about this one."""
    chunks = [Chunk(position=at, text=text) for at, text in enumerate((ANSWER, PARAPHRASE, PARAPHRASE))]
    support = Support(span=0, state=SupportState.ENTAILED, rule="number with its subject", position=0)
    finding = Finding(support=support, may_conflict=(1,))
    assert with_conflicts(finding, "4877 ms", "9037 ms", chunks).conflicts == ((1, "4877 ms"),)
    assert with_conflicts(finding, "9037 ms", "9037 ms", chunks).conflicts == ()
    assert with_conflicts(finding, None, "9037 ms", chunks).conflicts == ()


def test_words_with_signs_of_their_own_are_no_pattern() -> None:
    """What a model writes is data: brackets and stars are looked for as they are."""
    assert place_of("a(b*", "say a(b* now") == (4, 8)
    assert place_of("", "anything") is None
    assert place_of("(" * 50, "((((") is None
