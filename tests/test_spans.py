"""Sentences tile the text and spans are disjoint, ordered, visible pieces of it, whatever the text."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.sentences import MAX_BLOCK, split_sentences
from ragblame.attribution.spans import MAX_SPANS, segment, split_spans
from ragblame.attribution.verdicts.normalise import words
from ragblame.records import SpanKind

PORT = "The port of the Kestrel gateway is 2959."
HOSTILE = "aB1 .,:;()\"'“”-\n\r\t\x00é日本語。ู😀\u0301\u202e\u200b\u00a0$%°\ud800"
hostile = st.text(alphabet=st.sampled_from(HOSTILE))


def pieces(answer: str, question: str = "") -> list[tuple[str, str]]:
    """Text and kind of each span."""
    return [(answer[s.start : s.end], s.kind.value) for s in split_spans(answer, question)]


@given(st.one_of(hostile, st.text()))
@settings(max_examples=300, deadline=None)
def test_sentences_tile_any_text(text: str) -> None:
    """Sentences in order give the text back, lone surrogates, right-to-left marks and CRLF included."""
    bounds = split_sentences(text)
    assert "".join(text[start:end] for start, end in bounds) == text
    assert all(0 < end - start <= MAX_BLOCK for start, end in bounds)


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u202f", " \u00a0", "\u00a0 "])
def test_a_wide_space_before_a_dot_does_not_stop_the_splitter(
    space: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """sentencex panics over an initial with such a space before its dot: it never sees one."""
    text = f"It was built by B{space}. Arup. The port is 2959."
    assert split_sentences(text)[-1][1] == len(text)
    assert "panicked" not in capfd.readouterr().err


def test_a_panic_of_the_splitter_costs_its_proposal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The binding raises panics beside all exceptions: then end marks decide, and the worker lives."""

    class PanicException(BaseException):
        """As the binding's."""

    def panic(language: str, text: str) -> None:
        raise PanicException("planted")

    monkeypatch.setattr("ragblame.attribution.sentences.sentencex.get_sentence_boundaries", panic)
    assert split_sentences("One. Two.") == [(0, 5), (5, 9)]


@given(st.one_of(hostile, st.text()), st.one_of(hostile, st.text()))
@settings(max_examples=300, deadline=None)
def test_spans_hold_for_any_text(answer: str, question: str) -> None:
    """Spans are disjoint, in order, numbered, inside their sentence and never only white space."""
    spans = split_spans(answer, question)
    at = 0
    for index, span in enumerate(spans):
        assert span.index == index
        assert at <= span.start < span.end <= len(answer)
        assert span.sentence_start <= span.start
        assert span.end <= span.sentence_end
        assert answer[span.start : span.end].strip()
        at = span.end
    assert bool(spans) or not any(char.isalnum() for char in answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Who is here. He came.", ["Dr. Who is here. ", "He came."]),
        ("1. Open it.\n2. Close it.", ["1. Open it.\n", "2. Close it."]),
        ("Title\nThe port is 1.\nIts timeout is 2.", ["Title\n", "The port is 1.\n", "Its timeout is 2."]),
        ("A wrapped\nline stays. So.", ["A wrapped\nline stays. ", "So."]),
        ("The employees' work. The team's aim.", ["The employees' work. ", "The team's aim."]),
        ("これは文。次の文。", ["これは文。", "次の文。"]),
        ("See vs. that, approx. 5 m.", ["See vs. that, approx. 5 m."]),
    ],
)
def test_sentences_are_cut_where_a_reader_would(text: str, expected: list[str]) -> None:
    """Titles, list numbers, headings, wrapped lines and apostrophes do not mislead the cut."""
    assert [text[start:end] for start, end in split_sentences(text)] == expected


def test_a_value_stands_alone() -> None:
    """The value is a span; its subject is one too, unless the question asked about it."""
    assert pieces(PORT) == [("The port of the Kestrel gateway is", "clause"), ("2959", "number")]
    assert pieces(PORT, "What is the port of the Kestrel gateway?") == [("2959", "number")]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("It costs $1.5 million in Oslo.", [("$1.5 million", "number"), ("Oslo", "name")]),
        ("He came on 3 May 2024 at 14:30.", [("3 May 2024", "date"), ("14:30", "date")]),
        ("They call it “the long way” there.", [("“the long way”", "quote")]),
        ("The valve does not leak.", [("The valve does not leak", "negation")]),
        ("It is run by the Bank of England now.", [("Bank of England", "name")]),
        ("The rate limit is 110 requests per second.", [("110 requests per second", "number")]),
    ],
)
def test_checkable_pieces_are_found(answer: str, expected: list[tuple[str, str]]) -> None:
    """Money, dates, times, quotations, negations and names are spans of their kind."""
    found = pieces(answer)
    assert [piece for piece in found if piece[1] != "clause"] == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Der Motor kostet € 1.299,50 und wiegt 12 kg.", [("€ 1.299,50", "number"), ("12 kg", "number")]),
        ("Elle coûte 1 299,50 € depuis le 5 mars 2024.", [("1 299,50 €", "number"), ("5 mars 2024", "date")]),
        ("It sold for ₹1,00,000. Others paid USD 1,200.", [("₹1,00,000", "number"), ("USD 1,200", "number")]),
        ("Take 5–10 mg, or 5mg, about 20 % less.", [
            ("5–10 mg", "number"), ("5mg", "number"), ("20 %", "number")]),
        ("Am 5. März 2024 um 14.30 Uhr in Berlin.", [
            ("5. März 2024", "date"), ("14.30 Uhr", "date"), ("Berlin", "name")]),
        ("Opened 2024-03-05, closed 05.03.2025 at 8:00.", [
            ("2024-03-05", "date"), ("05.03.2025", "date"), ("8:00", "date")]),
        ("保存期間は3年です。価格は５００円、税率は３％です！", [
            ("3年", "number"), ("５００円", "number"), ("３％", "number")]),
        ("会议在2024年3月5日举行，地点是北京。", [("2024年3月5日", "date")]),
        ("सर्वर १२ दिन चलता है।", [("१२", "number")]),
        ("الخادم ٣ مايو.", [("٣", "number")]),
        ("Сервер в Новосибирске не отвечает 15 минут.", [
            ("Новосибирске", "name"), ("не отвечает", "negation"), ("15 минут", "number")]),
        ("La société « Dupont » n'existe pas à Lyon.", [
            ("« Dupont »", "quote"), ("n'existe pas à", "negation"), ("Lyon", "name")]),
        ("Er nannte es „den langen Weg“ gestern.", [("„den langen Weg“", "quote")]),
        ("彼は「長い道」と呼んだ。", [("「長い道」", "quote")]),
        ("Die Wartung der Pumpe dauert 90 Minuten und ist nicht kostenlos.", [
            ("90 Minuten", "number"), ("und ist nicht kostenlos", "negation")]),
        ("Die alte Pumpe ist noch immer von der Siemens GmbH und wird jetzt von Angela Merkel geleitet.", [
            ("Siemens GmbH", "name"), ("Angela Merkel", "name")]),
        ("Ο διακομιστής βρίσκεται στην Αθήνα.", [("Αθήνα", "name")]),
        ("Non è gratuito a Roma.", [("Non è gratuito a", "negation"), ("Roma", "name")]),
        ("It is a non-profit in Rome, not a faux one.", [("Rome", "name"), ("not a faux one", "negation")]),
        ("Try 5 times and rub 3 stones.", [("5", "number"), ("3", "number")]),
    ],
)  # fmt: skip
def test_checkable_pieces_are_found_in_many_languages(answer: str, expected: list[tuple[str, str]]) -> None:
    """Money, units, dates, quotes, names, denials as other countries write them; English words stay words."""
    assert [piece for piece in pieces(answer) if piece[1] != "clause"] == expected


scripts = st.lists(
    st.one_of(
        st.sampled_from(
            ["The port", "ポート", "порт", "الخادم", "שרת", "सर्वर", "café", "👩‍👩‍👧", "é" + "\u0301"]
        ),
        st.sampled_from(
            ["5 kg", "€ 1.299,50", "3年", "१२", "not", "“so”", "Oslo", ", and then", ".", "。", "\r\n"]
        ),
        st.text(max_size=4),
    ),
    max_size=14,
).map(" ".join)


@given(st.one_of(scripts, st.text(max_size=60)))
@settings(max_examples=300, deadline=None)
def test_every_telling_word_is_in_a_span(answer: str) -> None:
    """With no question, each word that can carry a claim stands in a span; slices give the text back."""
    answer = re.sub(
        r"[\[\]():\d]", " ", answer
    )  # list marks, citations and announcements are left out on purpose
    spans = split_spans(answer)
    covered = {at for span in spans for at in range(span.start, span.end)}
    gaps = "".join(char if at not in covered else "\x00" for at, char in enumerate(answer))
    lost = [word for word in words(gaps) if word.is_content]
    assert not lost, lost
    assert "".join(answer[s.start : s.end] for s in spans) == "".join(answer[at] for at in sorted(covered))


def test_list_marks_citations_and_announcements_are_no_claims() -> None:
    """What numbers the lines, cites a passage or announces the answer is not put before a reviewer."""
    answer = "Based on the given passages, here is how to grow it:\n1. Dig.\n2. Water it (passage 3) [2].\n"
    found = pieces(answer, "how to grow it")
    assert not [text for text, kind in found if kind == "number"]
    assert not [text for text, _ in found if "Based" in text]


def test_a_citation_is_no_part_of_a_span() -> None:
    """Neither of the value before it nor of the words behind it."""
    question = "How long is the warranty of the Orion pump?"
    assert pieces("The warranty of the Orion pump is 36 months [1].", question) == [("36 months", "number")]
    assert pieces("It was sold in March 2019 [2] in Norway [1, 3].") == [
        *(("It was sold in", "clause"), ("March 2019", "date"), ("Norway", "name")),
    ]
    assert pieces("Rain falls there [1][2].\n[3]\n") == [("Rain falls there", "clause")]


def test_a_bare_value_is_no_list_mark() -> None:
    """“2959.” is an answer; “4.” before an entry counts lines."""
    assert pieces("2959.") == [("2959", "number")]
    assert pieces("1. 42 apples.\n2. 3 pears.") == [
        *(("42", "number"), ("apples", "clause")),
        *(("3", "number"), ("pears", "clause")),
    ]


def test_words_of_the_question_get_no_span_but_a_claim_of_them_does() -> None:
    """Echoed words are left out beside a value; “yes” and a sentence that only echoes stay claims."""
    question = "Does the gateway use TLS?"
    assert pieces("Yes, the gateway uses TLS.", question) == [("Yes, the gateway uses TLS", "clause")]
    assert pieces("Yes.", question) == [("Yes", "clause")]


def test_many_spans_are_merged_and_said() -> None:
    """The cap holds, every sentence stays covered, and a note tells."""
    answer = "The sum of part A is 31 and of part B 42. " * 3_000
    found = segment(answer)
    assert len(found.spans) == MAX_SPANS
    assert found.note is not None
    assert str(MAX_SPANS) in found.note
    assert found.spans[-1].end == len(answer.rstrip(". "))
    assert segment("Short.").note is None


@pytest.mark.parametrize(
    "unit", ["This is item 3.5 of Oslo. ", "1 ", "“", "Aa ", "a, and b c d. ", "( a", '"a" ', "\n"]
)
def test_a_long_answer_takes_seconds(unit: str) -> None:
    """No text makes segmentation slow."""
    answer = unit * (300_000 // len(unit))
    started = time.process_time()
    assert len(split_spans(answer)) <= MAX_SPANS
    assert time.process_time() - started < 8  # 0.3 MB; measured 0.1 s to 1.6 s on a quiet machine


def test_kinds_are_those_of_the_record() -> None:
    """Every kind the segmentation gives is storable."""
    assert {kind for _, kind in pieces(PORT)} <= {kind.value for kind in SpanKind}
