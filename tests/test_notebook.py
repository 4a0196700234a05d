"""A notebook shows an explanation: everything on it is text, whatever the text tries to be."""

from dataclasses import replace
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.debugger import Debugger
from ragblame.notebook import render
from ragblame.records import Explanation, Fitness, ScorerRef

ALLOWED = {
    *(
        "style",
        "div",
        "p",
        "strong",
        "h4",
        "mark",
        "sup",
        "span",
        "ul",
        "li",
        "br",
        "table",
        "tr",
        "th",
        "td",
    ),
    *("details", "summary"),
}


class Reader(HTMLParser):
    """Collects tags, attributes and text as a browser would see them."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self._in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a tag and its attributes."""
        self.tags.append(tag)
        self.attributes.update(name for name, _ in attrs)
        self._in_style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        """Leave the style sheet."""
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data: str) -> None:
        """Keep visible text."""
        if not self._in_style:
            self.text += data


def read(markup: str) -> Reader:
    """The markup as parsed."""
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


def explain(question: str, answer: str, *chunks: str) -> Explanation:
    """An explanation from the text alone."""
    return Debugger.text_only().explain(question=question, chunks=chunks, answer=answer)


hostile = st.lists(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "</mark></div>",
            '" onmouseover="x',
            "'><img src=x onerror=y>",
            "</style>",
            "<!--",
            "&lt;b&gt;",
            "]]>",
            "<svg/onload=z>",
            "\x00",
            "\ud800",
            "2959",
            "Kestrel ",
            ". ",
            "\n",
        ]
    ),
    min_size=1,
    max_size=12,
).map("".join)


@given(hostile, hostile.filter(str.strip), st.lists(hostile, max_size=3), hostile)
@settings(max_examples=120, deadline=None)
def test_no_text_becomes_markup(question: str, answer: str, chunks: list[str], name: str) -> None:
    """Only our own tags and attributes appear, whatever question, answer, chunks, names and notes hold."""
    explanation = explain(question, answer, *chunks)
    explanation = replace(
        explanation,
        scorer=ScorerRef(name=name, revision=name, is_own_model=False),
        fitness=Fitness(is_fit=False, answer_nats=-1, unigram_nats=-1, reason=name),
        notes=(name,),
    )
    markup = render(explanation)
    reader = read(markup)
    assert set(reader.tags) <= ALLOWED
    assert reader.attributes <= {"class", "title"}
    assert reader.tags.count("style") == reader.tags.count("div") == 1
    markup.encode("utf-8")


def test_the_whole_answer_is_there_once() -> None:
    """Marks neither lose nor double a character, and each verdict shows its letter."""
    answer = "The port of the Kestrel gateway is 2959. It is 5 < 6 & “quoted”."
    explanation = explain("What is the port of the Kestrel gateway?", answer, "The Kestrel gateway is up.")
    text = read(explanation._repr_html_()).text
    for verdict in explanation.verdicts:
        letter = verdict.verdict.value[0].upper()
        assert f"{letter}{verdict.span + 1}" in text
    marks = {f"{v.verdict.value[0].upper()}{v.span + 1}" for v in explanation.verdicts}
    start = text.index("The port of")
    shown = text[start : text.index("G grounded")]
    for mark in sorted(marks, key=len, reverse=True):
        shown = shown.replace(mark, "", 1)
    assert shown == answer


def test_what_the_numbers_rest_on_is_said() -> None:
    """No scorer, a stand-in and an unfit scorer are each announced."""
    explanation = explain("?", "It is 5.", "It is 6.")
    assert "only the text was checked" in read(render(explanation)).text
    scorer = ScorerRef(name="tiny", revision="1", is_own_model=False)
    fitness = Fitness(is_fit=False, answer_nats=-9, unigram_nats=-8, reason="It guesses.")
    text = read(render(replace(explanation, scorer=scorer, fitness=fitness))).text
    assert "Stand-in scorer: tiny" in text
    assert "It guesses." in text


def test_a_long_answer_is_cut_and_said() -> None:
    """A megabyte does not end up in the notebook file."""
    markup = render(explain("?", "The sum is 31 in Oslo. " * 40_000, "No."))
    assert len(markup) < 200_000
    assert "more characters" in markup
