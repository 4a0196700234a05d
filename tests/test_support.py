"""Support is what a chunk says about the right subject, with the sentence quoted; elsewhere is a trap."""

import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.spans import split_spans
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.support import check_support, examine
from ragblame.attribution.world.episodes import FULL, answer_text, draw_chunks, draw_question
from ragblame.attribution.world.facts import Origin, Resolved, draw_fact, world
from ragblame.attribution.world.values import Split
from ragblame.attribution.world.wording import answer_parts
from ragblame.records import Chunk, Message, SpanKind, SupportState

PORT_QUESTION = "What is the port of the Kestrel gateway?"
PORT = "The port of the Kestrel gateway is 2959."
BORROWED = "value stands with another subject"


def chunks_of(*texts: str) -> list[Chunk]:
    """Chunks with these texts, in order."""
    return [Chunk(position=i, text=text) for i, text in enumerate(texts)]


def find(question: str, answer: str, *texts: str) -> list[Finding]:
    """Findings of every span of an answer."""
    return list(examine(question, answer, split_spans(answer, question), chunks_of(*texts)))


def value(question: str, answer: str, *texts: str) -> Finding:
    """The finding of the last span, which is the value."""
    return find(question, answer, *texts)[-1]


@pytest.mark.parametrize(
    "text",
    [
        "The port of the Kestrel gateway is 2959.",
        "The Kestrel gateway listens on port 2959.",
        "Clients reach the Kestrel gateway on port 2,959.",
        "The Kestrel gateway runs in Oslo. Its port is 2959.",
        "The Kestrel gateway is watched around the clock. Ask first. It listens on port 2959.",
        "# Kestrel gateway\nport: 2959",
        "The KESTREL gateway's port is 2959.",
    ],
)
def test_a_value_with_its_subject_is_entailed(text: str) -> None:
    """However it is worded, and when the subject is carried over from an earlier sentence of the chunk."""
    support = value(PORT_QUESTION, PORT, text).support
    assert support.state is SupportState.ENTAILED
    assert support.position == 0
    assert "2959" in text[support.evidence_start : support.evidence_end].replace(",", "")


@pytest.mark.parametrize(
    "text",
    [
        "The port of the Kestrel queue is 2959.",
        "The Kestrel queue listens on port 2959.",
        "The Kestrel queue runs in Oslo. Its port is 2959.",
        "Traffic for the Osprey gateway goes to port 2959.",
    ],
)
def test_a_value_with_another_subject_is_no_support(text: str) -> None:
    """The classic trap: the right number in a sentence about a sibling is named as borrowed."""
    finding = value(PORT_QUESTION, PORT, "The Kestrel gateway runs in Oslo.", text)
    assert finding.support.state is SupportState.ABSENT
    assert finding.support.rule == BORROWED
    assert finding.borrowed_from == (1,)


def test_a_noun_that_the_value_brings_does_not_name_the_subject() -> None:
    """The fallback of a sibling, itself a gateway, does not make the sibling's sentence about the gateway."""
    question, answer = "Where does the Kestrel gateway fall back to?", "It falls back to the Heron gateway."
    sibling = "The Kestrel proxy falls back to the Heron gateway."
    assert value(question, answer, sibling).support.state is SupportState.ABSENT
    alike = "The Kestrel proxy falls back to the Heron proxy."
    assert value(question, "It falls back to the Heron proxy.", alike).support.state is SupportState.ABSENT
    own = "The Kestrel gateway falls back to the Heron gateway."
    assert value(question, answer, sibling, own).support.position == 1


def test_two_sentences_equal_but_for_the_value_disagree() -> None:
    """A copied page with another value is a conflict, whatever the attribute is called in it."""
    said, copied = (f"The Kestrel gateway gives up after {number} ms." for number in (9037, 4877))
    finding = value("What is the timeout of the Kestrel gateway?", "The timeout is 9037 ms.", said, copied)
    assert finding.conflicts == ((1, "4877 ms"),)
    other = value(
        "What is the timeout of the Kestrel gateway?",
        "The timeout is 9037 ms.",
        said,
        "Requests to the Kestrel gateway wait for 4877 ms.",
    )
    assert other.conflicts == ()
    assert other.may_conflict == (1,)


@pytest.mark.parametrize(
    ("question", "answer", "text", "stated"),
    [
        (PORT_QUESTION, PORT, "The Kestrel gateway listens on port 2995.", "2995"),
        (PORT_QUESTION, PORT, "The Kestrel gateway runs in Oslo. Its port is 4000.", "4000"),
        ("How long?", "The pause of the Kestrel gateway is 90 minutes.", "The pause of the Kestrel gateway is 90 seconds.", "90 seconds"),  # noqa: E501
        ("Which supply?", "The Kestrel gateway needs 24 V.", "The Kestrel gateway needs 12 volts.", "12 volts"),  # noqa: E501
        ("When?", "The audit of the Kestrel gateway is on 3 May 2024.", "The audit of the Kestrel gateway is on 5 March 2024.", "5 March 2024"),  # noqa: E501
        ("Who owns the Kestrel gateway?", "The owner of the Kestrel gateway is Maya Lind.", "The Kestrel gateway is owned by Omar Falk.", "Omar Falk"),  # noqa: E501
        ("Where do alerts go?", "The channel of the Kestrel gateway is coral-lynx.", "The channel of the Kestrel gateway is amber-yak.", "amber-yak"),  # noqa: E501
    ],
)  # fmt: skip
def test_another_value_for_the_subject_contradicts(
    question: str, answer: str, text: str, stated: str
) -> None:
    """A digit, unit, date or name off is a contradiction that says what the chunk states."""
    support = value(question, answer, text).support
    assert (support.state, support.stated) == (SupportState.CONTRADICTED, stated)


@pytest.mark.parametrize(
    ("said", "stated", "rule"),
    [
        ("90 min", "1.5 h", "number with its subject, unit converted"),
        ("2 GB", "2000 MB", "number with its subject, unit converted"),
        ("2 GiB", "2048 MiB", "number with its subject, unit converted"),
        ("ninety minutes", "90 min", "number with its subject"),
        ("€ 1.299,50", "1,299.50 €", "number with its subject"),
        ("₹1,00,000", "INR 100,000", "number with its subject"),
    ],
)
def test_the_same_amount_in_other_words_is_entailed(said: str, stated: str, rule: str) -> None:
    """Another unit, notation or spelling changes nothing, and a conversion is named."""
    question = "What is the limit of the Kestrel gateway?"
    support = value(question, f"It is {said}.", f"The limit of the Kestrel gateway is {stated}.").support
    assert (support.state, support.rule) == (SupportState.ENTAILED, rule)


DOSE = "What is the dose of the Kestrel valve?"


@pytest.mark.parametrize(
    ("said", "stated", "why"),
    [
        ("1.299 kg", "1,299 kg", "another notation"),
        ("7 mg", "5–10 mg", "a range holds it"),
        ("2 GB", "2048 MB", "units of 1000 or of 1024"),
        ("3/5/2024", "5/3/2024", "another order"),
    ],
)
def test_what_may_be_the_same_is_unclear_and_says_why(said: str, stated: str, why: str) -> None:
    """Where only the country, the convention or the rest of a range would tell, nobody is blamed."""
    support = value(DOSE, f"It is {said}.", f"The dose of the Kestrel valve is {stated}.").support
    assert support.state is SupportState.UNCLEAR
    assert why in support.rule
    assert support.position == 0


@pytest.mark.parametrize(
    ("said", "stated"),
    [
        *(
            ("1.299 kg", "1,300 kg"),
            ("11 mg", "5–10 mg"),
            ("5–10 mg", "7 mg"),
            ("2 GB", "2100 MB"),
            ("13/5/2024", "12/5/2024"),
        ),
        *(("€ 1.299,50", "1,299.05 €"), ("90 min", "1.6 h"), ("₹1,00,000", "INR 10,000")),
    ],
)
def test_near_misses_of_another_notation_still_contradict(said: str, stated: str) -> None:
    """The doubt is about notation only: another amount stays another amount."""
    support = value(DOSE, f"It is {said}.", f"The dose of the Kestrel valve is {stated}.").support
    assert support.state is SupportState.CONTRADICTED


def test_a_short_form_counts_where_a_chunk_defines_it() -> None:
    """“International Monetary Fund (IMF)” makes both one; unexplained or with other letters they are two."""
    question, long = "Who approved the Kestrel valve?", "International Monetary Fund"
    answer, said = f"It was approved by the {long}.", "The Kestrel valve was approved by the IMF."
    defined, wrong = f"The {long} (IMF) sits in Oslo.", f"The {long} (XYZ) sits in Oslo."
    found = value(question, answer, defined, said).support
    assert (found.state, found.position) == (SupportState.ENTAILED, 1)
    back = value(
        question, "It was approved by the IMF.", f"IMF ({long}): see there.", said.replace("IMF", long)
    )
    assert (back.support.state, back.support.position) == (SupportState.ENTAILED, 1)
    for chunks in ((said,), (wrong, said)):
        assert value(question, answer, *chunks).support.state is not SupportState.ENTAILED


def test_a_name_with_a_number_may_be_written_in_two_words() -> None:
    """“PlayStation3” is “PlayStation 3”, and no “PlayStation 4”."""
    question, answer = "Which console was it?", "The console was a PlayStation3."
    same = value(question, answer, "The console was a PlayStation 3.").support
    other = value(question, answer, "The console was a PlayStation 4.").support
    assert (same.state, other.state is SupportState.ENTAILED) == (SupportState.ENTAILED, False)


def test_words_copied_at_length_are_about_the_same() -> None:
    """A value inside a long quoted stretch keeps the stretch's subject; a few words alike prove nothing."""
    stretch = "with the endpoint being located in Louisa County at the town of Columbus"
    chunk = f"The Iowa River rises in Dodge County. It flows into Floyd County {stretch}."
    found = find("Where does the Cedar River end?", f"The Cedar River ends far south, {stretch}.", chunk)
    assert "Louisa County" in chunk
    assert BORROWED not in {f.support.rule for f in found}
    assert value(PORT_QUESTION, PORT, "The port of the Kestrel queue is 2959.").support.rule == BORROWED


def test_a_negation_elsewhere_in_the_sentence_is_no_difference() -> None:
    """What the answer repeats word for word is not denied by a “not” about something else further on."""
    answer = "The term undrafted free agent is most common in the National Football League"
    question = "what does undrafted free agent mean"
    further = f"{answer}, where rookies do not play in a minor league system."
    denied = f"{answer.replace('most', 'not')}."
    assert {f.support.state for f in find(question, f"{answer}.", further)} == {SupportState.ENTAILED}
    assert SupportState.CONTRADICTED in {f.support.state for f in find(question, f"{answer}.", denied)}


def test_a_number_of_the_question_is_no_fabrication() -> None:
    """“In season 9” repeats what was asked: unclear where no chunk tells; another number is fabricated."""
    chunk = "The interns are led by Maya Lind."
    for number, state in (("9", SupportState.UNCLEAR), ("7", SupportState.ABSENT)):
        answer = f"The interns follow Maya Lind through season {number} of it."
        spans = split_spans(answer, "Who leads the interns in season 9?")
        found = find("Who leads the interns in season 9?", answer, chunk)
        [at] = [span.index for span in spans if answer[span.start : span.end] == number]
        assert found[at].support.state is state, number


@pytest.mark.parametrize(
    ("answer", "chunk", "state"),
    [
        ("The north valve is closed.", "The north valve is not closed.", SupportState.CONTRADICTED),
        ("The port is 2959.", "The port is not 2959.", SupportState.CONTRADICTED),
        ("The owner is Maya Lind.", "The owner is not Maya Lind.", SupportState.CONTRADICTED),
        ("The port is 2959.", "The port is not only 2959.", SupportState.ENTAILED),
        ("The north valve is closed.", "Not a word: the north valve is closed.", SupportState.ENTAILED),
        ("The north valve is not closed.", "The north valve is not closed.", SupportState.ENTAILED),
    ],
)
def test_a_value_behind_not_is_denied(answer: str, chunk: str, state: SupportState) -> None:
    """“Not closed” is no support for “closed”; a “not” further off or of a limit changes nothing."""
    assert find("?", answer, chunk)[-1].support.state is state


@pytest.mark.parametrize(
    ("denied", "said"),
    [
        ("Das Ventil im Norden ist nicht geschlossen.", "Das Ventil im Norden ist geschlossen."),
        ("La vanne du nord n'est pas fermée.", "La vanne du nord est fermée."),
        ("La válvula norte nunca está cerrada.", "La válvula norte está cerrada."),
        ("Северный клапан больше не закрыт.", "Северный клапан больше закрыт."),
        ("Het ventiel noord is niet gesloten.", "Het ventiel noord is gesloten."),
    ],
)
def test_negation_differs_in_other_languages_too(denied: str, said: str) -> None:
    """A denial in German, French, Spanish, Russian or Dutch is no support, either way round."""
    for answer, chunk in ((denied, said), (said, denied)):
        assert find("?", answer, chunk)[-1].support.state is not SupportState.ENTAILED
    for text in (denied, said):
        assert {f.support.state for f in find("?", text, text)} == {SupportState.ENTAILED}


def test_negation_turns_support_into_contradiction() -> None:
    """A negated sentence does not support the plain clause, nor the other way round."""
    question = "Is TLS there?"
    assert (
        value(question, "The gateway supports TLS.", "The gateway supports TLS.").support.state == "entailed"
    )
    for answer, text in (
        ("The gateway does not support TLS.", "The gateway supports TLS."),
        ("The gateway supports TLS.", "The gateway does not support TLS."),
    ):
        support = value(question, answer, text).support
        assert (support.state, support.rule) == (SupportState.CONTRADICTED, "negation differs")


@pytest.mark.parametrize(
    ("answer", "chunk"),
    [
        ("In 2023 revenue fell 12%.", "Revenue rose 12% to $4.5 billion in 2023, while costs fell 3%."),
        ("The retry queue grew by 40 GB.", "The retry queue shrank by nearly 40 GB."),
        ("Latency saw a 30% decrease.", "Latency saw a 30% increase."),
        ("The password needs at most 12 characters.", "The password needs at least 12 characters."),
        ("Members must be under 21 years.", "Members must be 21 years or older."),
        ("The upload may hold more than 25 MB.", "The upload may hold no more than 25 MB."),
        ("A minimum of 4 replicas runs.", "A maximum of 4 replicas runs."),
        ("The office closes before 17:00.", "The office closes after 17:00."),
        ("Returns are taken after 30 days.", "Returns are taken within 30 days."),
    ],
)
def test_the_opposite_way_of_a_value_contradicts_it(answer: str, chunk: str) -> None:
    """The same number with rose for fell, at most for at least, after for before: contradicted both ways."""
    for said, text in ((answer, chunk), (chunk, answer)):
        values = [f.support for f in find("?", said, text) if f.support.rule == "direction differs"]
        assert [support.state for support in values] == [SupportState.CONTRADICTED]
    for text in (answer, chunk):
        assert not [f for f in find("?", text, text) if f.support.state is SupportState.CONTRADICTED]


@pytest.mark.parametrize(
    ("answer", "chunk"),
    [
        ("In fall 2023 the plant opened.", "The plant opened and output rose in 2023."),  # a season
        ("Revenue did not fall 12%.", "Revenue rose 12%."),
        ("The pool holds more than 25 MB.", "The pool holds at least 25 MB."),
        ("Costs were 12%.", "Costs rose 12%."),
        ("Sales rose and 12% of them were online.", "Sales fell, and 12% of them were online."),
        ("It rose 12%.", "It fell 12% in March and rose 12% in May."),  # the chunk says both
        ("The share is no less than 5%.", "The share is at least 5%."),
        ("Have less than $3,700 of income.", "Claim her if she did not have income of more than $3,700."),
        ("Under 5 years it may be taxed.", "Open for 5 years or more it will not be taxed."),
    ],
)
def test_ways_that_are_not_opposite_do_not_contradict(answer: str, chunk: str) -> None:
    """Seasons, denials, words of another value and the same bound in other words turn nothing round."""
    assert "direction differs" not in {f.support.rule for f in find("?", answer, chunk)}


def test_chunks_that_agree_and_disagree_are_listed() -> None:
    """Further chunks that say the same, and one that says otherwise, are found."""
    other = "The port of the Kestrel gateway is 4000."
    finding = value(PORT_QUESTION, PORT, PORT, "No port.", other, "The Kestrel gateway listens on port 2959.")
    assert finding.support.position == 0
    assert finding.support.other_positions == (3,)
    assert finding.conflicts == ((2, "4000"),)


def test_what_stands_nowhere_is_absent() -> None:
    """A number, a name and a clause that no chunk says are absent, each with its rule."""
    text = "The Kestrel gateway is watched around the clock."
    assert value(PORT_QUESTION, PORT, text).support.rule == "number in no chunk"
    assert value("Who owns it?", "It belongs to Maya Lind.", text).support.rule == "name in no chunk"
    found = value("Why?", "Purple elephants danced during lunch.", text).support
    assert (found.state, found.rule) == (SupportState.ABSENT, "clause in no chunk")
    assert value(PORT_QUESTION, PORT).support.state is SupportState.ABSENT


def test_an_abstention_is_no_claim_but_a_plain_negation_is() -> None:
    """“Not stated in the context” is nothing to check; “does not include” is."""
    abstains = value(
        PORT_QUESTION, "The port of the Kestrel gateway is not stated in the context.", "Nothing."
    )
    assert abstains.support.rule.startswith("no claim")
    claims = value("What is in it?", "The box does not include batteries.", "Cats sleep all day.")
    assert claims.support.state is SupportState.ABSENT


def test_only_text_in_the_prompt_is_evidence() -> None:
    """A chunk that did not reach the prompt, or a sentence beyond the cut, is reported as dropped."""
    padding = "This page was reviewed by the whole platform team in the spring of last year. "
    chunks = chunks_of("The Kestrel gateway runs in Oslo.", padding + PORT)
    spans = split_spans(PORT, PORT_QUESTION)
    for sent in (chunks[0].text, f"{chunks[0].text}\n{padding}"):
        alignments = align_chunks(chunks, [Message(role="prompt", text=sent)])
        [finding] = examine(PORT_QUESTION, PORT, spans, chunks, alignments)
        assert finding.support.state is SupportState.ABSENT
        assert finding.dropped == (1,)
    [unknown] = examine(PORT_QUESTION, PORT, spans, chunks, None)
    assert unknown.support.state is SupportState.ENTAILED


hostile = st.text(alphabet=st.sampled_from("Kk12 .,:'\"“-\n\x00é日本。😀\u0301\u202e%°\ud800"), max_size=60)


@given(hostile, hostile, st.lists(hostile, max_size=3))
@settings(max_examples=150, deadline=None)
def test_evidence_offsets_hold_for_any_text(question: str, answer: str, texts: list[str]) -> None:
    """One support per span; evidence is a visible part of the chunk it names."""
    spans = split_spans(answer, question)
    supports = check_support(question, answer, spans, chunks_of(*texts))
    assert [support.span for support in supports] == [span.index for span in spans]
    for support in supports:
        assert support.rule
        if support.position is None:
            assert (support.evidence_start, support.evidence_end) == (None, None)
            continue
        assert support.evidence_start is not None
        assert support.evidence_end is not None
        quote = texts[support.position][support.evidence_start : support.evidence_end]
        assert quote.strip() == quote != ""
        assert support.position not in support.other_positions


@given(st.integers(1_000, 9_999), st.integers(1_000, 9_999))
@settings(max_examples=60, deadline=None)
def test_a_number_is_entailed_only_by_itself(said: int, stated: int) -> None:
    """For any two numbers the answer is entailed when they are equal and contradicted when not."""
    answer = f"The port of the Kestrel gateway is {said}."
    support = value(PORT_QUESTION, answer, f"The Kestrel gateway listens on port {stated}.").support
    assert support.state is (SupportState.ENTAILED if said == stated else SupportState.CONTRADICTED)


def test_a_value_of_a_parallel_thing_is_no_support_though_the_question_asks_of_another() -> None:
    """Two hops: the answer goes on to the fallback, and takes the port of some other bucket."""
    found = find(
        "What is the port of the fallback of the Tidewood database?",
        "The fallback of the Tidewood database is the Duskworth bucket. "
        "The port of the Duskworth bucket is 2003.",
        "Traffic for the Cloudcombe bucket goes to port 2003.",
        "The Duskworth bucket runs release 4.68.",
        "The Tidewood database falls back to the Duskworth bucket.",
    )
    assert [finding.support.state for finding in found] == [SupportState.ENTAILED, SupportState.ABSENT]
    assert found[1].support.rule == BORROWED


def test_the_world_of_runbooks_is_judged_right() -> None:
    """On 200 drawn contexts the state equals the known truth in at least 97 of 100 claims (measured 99.9)."""
    rng = random.Random(11)
    outcomes: Counter[bool] = Counter()
    for _ in range(200):
        chunks = draw_chunks(rng, Split.HELD_OUT, rng.randint(1, 6), FULL)
        question = draw_question(rng, Split.HELD_OUT, chunks, FULL)
        resolved = [world().resolve(claim, chunks) for claim in question.claims]
        if rng.random() < 0.3:
            drawn = [draw_fact(rng, claim.attribute, Split.HELD_OUT) for claim in question.claims]
            resolved = [Resolved(value=value, origin=Origin.PRIOR) for value in drawn]
        answer = answer_text(question.claims, resolved)
        spans = split_spans(answer, question.text)
        findings = examine(question.text, answer, spans, chunks_of(*[chunk.text for chunk in chunks]))
        at = 0
        for claim, result in zip(question.claims, resolved, strict=True):
            head, body, _ = answer_parts(claim.attribute, str(claim.entity), result.value)
            start = answer.index(head + body, at) + len(head)
            at = start + len(body)
            [index] = [s.index for s in spans if s.start < at and s.end > start]
            if result.origin is Origin.ABSTAINED:
                continue
            article = len("the ") if body.startswith("the ") else 0  # of "the Osprey cache"
            assert spans[index].end == at
            assert spans[index].start in (start, start + article)
            stated = [value for chunk in chunks if (value := chunk.value(claim))]
            truth = SupportState.ABSENT
            if stated:
                is_said = result.value in stated
                truth = SupportState.ENTAILED if is_said else SupportState.CONTRADICTED
            outcomes[findings[index].support.state is truth] += 1
    assert outcomes.total() > 200
    assert outcomes[True] >= 0.97 * outcomes.total()


def test_many_chunks_and_spans_take_seconds() -> None:
    """60 chunks of 4,000 characters and a long answer stay fast."""
    rng = random.Random(0)
    pool = [f"word{i}" for i in range(4_000)]

    def sentence() -> str:
        return f"The {' '.join(rng.choices(pool, k=12))} of Kestrel is {rng.randint(1, 9999)}. "

    texts = ["".join(sentence() for _ in range(40)) for _ in range(60)]
    answer = "".join(sentence() for _ in range(150))
    started = time.process_time()
    found = find("What is it?", answer, *texts)
    assert len(found) > 100
    assert time.process_time() - started < 8  # measured 0.8 s
    assert {SpanKind.NUMBER, SpanKind.CLAUSE} <= {span.kind for span in split_spans(answer)}
