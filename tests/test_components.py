"""What the page draws, checked as a tree of nodes: every word is there, nothing is markup, numbers add up."""

import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.records import (
    AlignmentState,
    Cause,
    CorpusEvidence,
    CorpusLook,
    CorpusSearch,
    Explanation,
    Json,
    Method,
    PromptLine,
    Span,
    SpanKind,
    SupportState,
    TokenHeat,
    VerdictKind,
)
from ragblame.ui.components import nodes
from ragblame.ui.components.answer import WINDOW, answer_block, question_block, window
from ragblame.ui.components.chunks import chunk_cards, heat_step, prompt_order
from ragblame.ui.components.corpus import corpus_section
from ragblame.ui.components.finding import cautions, finding
from ragblame.ui.components.heatmap import MAX_CHUNKS, MAX_SPANS, heat_cells, heat_map, heat_table
from ragblame.ui.components.nodes import Node, el, text_of, to_plain
from ragblame.ui.components.numbers import methods_table, without_one
from ragblame.ui.components.prompt import prompt_messages
from ragblame.ui.components.rows import link_to_trace
from ragblame.ui.components.waterfall import waterfall, waterfall_steps, waterfall_sum
from ragblame.ui.components.wording import cut, likelier, nats, span_of_time
from ragblame.ui.reads import Progress
from ragblame.ui.reads_trace import TracePage
from tests.example_cases import CASES, HOSTILE, example_explanations, hostile_explanation
from tests.example_explanations import Case, Said, explain

COMPONENTS = Path(nodes.__file__).parent
INDICES = range(len(CASES))


def page_of(explanation: Explanation) -> TracePage:
    """The page of an explanation that nobody stored."""
    return TracePage(
        explanation=explanation,
        progress=Progress.DONE,
        error=None,
        finished_at=None,
        is_rerun_waiting=False,
        items={},
        reviews={},
        heat_methods=(),
        verdicts={verdict.span: verdict for verdict in explanation.verdicts},
        supports={support.span: support for support in explanation.supports},
        alignments={alignment.position: alignment for alignment in explanation.alignments},
        attributions={(entry.span, entry.method): entry for entry in explanation.attributions},
    )


def walk(node: Node | str) -> list[Node]:
    """All elements of a tree, outermost first."""
    if isinstance(node, str):
        return []
    return [node, *[inner for child in node.children for inner in walk(child)]]


def with_class(node: Node, name: str) -> list[Node]:
    """All elements of a tree that carry a class."""
    return [inner for inner in walk(node) if name in inner.css.split()]


def answer_text(node: Node) -> str:
    """The answer as drawn, without the letters that tell verdicts."""
    (block,) = with_class(node, "answer")

    def text(inner: Node | str) -> str:
        if isinstance(inner, str):
            return inner
        return "" if inner.css == "tag" else "".join(text(child) for child in inner.children)

    return text(block)


@given(
    answer=st.text(alphabet=st.sampled_from("ab é👩‍🚀\u0301\u202e\r\n<&"), min_size=1, max_size=80),
    cuts=st.lists(st.tuples(st.integers(0, 79), st.integers(1, 30)), max_size=10),
    selected=st.integers(0, 9),
)
def test_answer_is_drawn_whole(answer: str, cuts: list[tuple[int, int]], selected: int) -> None:
    """However spans overlap, the answer on screen is the answer; a span is one stop for the keyboard."""
    spans = [
        Span(
            index=index,
            start=start,
            end=min(start + size, len(answer)),
            kind=SpanKind.CLAUSE,
            sentence_start=0,
            sentence_end=len(answer),
        )
        for index, (start, size) in enumerate(cut for cut in cuts if cut[0] < len(answer))
    ]
    drawn = answer_block(answer, spans, {}, selected)
    assert answer_text(drawn) == answer
    stops = [node for node in with_class(drawn, "span") if node.attributes["tabindex"] == "0"]
    assert len({node.pick for node in stops}) == len(stops)
    assert {node.pick for node in stops} == {node.pick for node in with_class(drawn, "span")}
    assert all(node.attributes["aria-label"] for node in stops)


@given(size=st.integers(0, 400), focus=st.integers(0, 500), room=st.integers(1, 120))
def test_window_holds_the_focus(size: int, focus: int, room: int) -> None:
    """The drawn part is as long as allowed, lies inside the text, and holds the focus."""
    start, end = window("x" * size, focus, room)
    assert 0 <= start <= end <= size
    assert end - start == min(size, room)
    assert size == 0 or start <= min(focus, size - 1) < max(end, 1) or focus >= size


def test_a_selected_span_does_not_hide_the_spans_in_it() -> None:
    """Inside a selected clause the number can still be picked; both look selected or picked as they are."""
    answer = "it keeps 90 days of mail"
    outer = Span(index=0, start=0, end=24, kind=SpanKind.CLAUSE, sentence_start=0, sentence_end=24)
    inner = Span(index=1, start=9, end=16, kind=SpanKind.NUMBER, sentence_start=0, sentence_end=24)
    drawn = answer_block(answer, [outer, inner], {}, 0)
    assert [node.pick for node in with_class(drawn, "span")] == ["0", "1", "0"]
    assert [text_of(node) for node in with_class(drawn, "selected")] == ["it keeps ", "90 days", " of mail"]


def test_a_megabyte_answer_is_drawn_in_part() -> None:
    """A giant answer shows the part around the selected span and says how much is missing."""
    answer = "word " * 200_000
    span = Span(
        index=0, start=500_000, end=500_004, kind=SpanKind.CLAUSE, sentence_start=0, sentence_end=1_000_000
    )
    drawn = answer_block(answer, [span], {}, 0)
    assert len(answer_text(drawn)) == WINDOW
    assert "… 492,000 more characters" in text_of(drawn)
    assert [node.pick for node in with_class(drawn, "selected")] == ["0"]


def test_verdicts_are_told_without_colour() -> None:
    """Each flagged span carries its letter, and its label names verdict and cause."""
    explanation = example_explanations()[0]
    page = page_of(explanation)
    drawn = answer_block(page.trace.answer, page.spans, page.verdicts, 0)
    assert [text_of(tag) for tag in with_class(drawn, "tag")] == ["D"]
    labels = [node.attributes["aria-label"] for node in with_class(drawn, "span")]
    assert labels[0] == "90 days: distorted, cause: borrowed from another subject"
    assert labels[1] == "the Lagos team: grounded"
    styles = (COMPONENTS / "nodes.css").read_text("utf-8")
    shapes = re.findall(r"--style: (\w+);", styles)
    assert len(shapes) == len(set(shapes)) == len(VerdictKind)


@pytest.mark.parametrize("index", INDICES)
def test_finding_says_what_it_rests_on(index: int) -> None:
    """Cause, basis, evidence and scorer are in the finding of each span, and stand-ins are named."""
    explanation = example_explanations()[index]
    page = page_of(explanation)
    for span, verdict in zip(page.spans, explanation.verdicts, strict=True):
        text = text_of(finding(page, span))
        assert verdict.explanation in text
        assert verdict.basis.value in text
        assert page.span_text(span) in text
        if verdict.cause is not None:
            assert verdict.cause.value in text
        stated = page.supports[span.index].stated
        assert stated is None or stated in text
        assert explanation.scorer is not None
        assert ("Stand-in scorer" in text) == (
            not explanation.scorer.is_own_model and bool(explanation.fitness and explanation.fitness.is_fit)
        )
        assert ("cannot explain this answer" in text) == (
            explanation.fitness is not None and not explanation.fitness.is_fit
        )


def test_no_scorer_is_said() -> None:
    """Without any scorer the page says that only the text was checked."""
    explanation = explain(replace(CASES[0], scorer=None, fitness=None))
    (node,) = cautions(explanation, explanation.verdicts[0].basis)
    assert "only the text was checked" in text_of(node)


@pytest.mark.parametrize("index", INDICES)
def test_cards_show_every_chunk_in_prompt_order(index: int) -> None:
    """One card per chunk, dropped chunks last and marked, each with its full text and its share."""
    page = page_of(example_explanations()[index])
    cards = with_class(chunk_cards(page, 0, {}), "card")
    assert [text_of(with_class(card, "place")[0]) for card in cards] == [
        str(chunk.position + 1) for chunk in prompt_order(page)
    ]
    for card, chunk in zip(cards, prompt_order(page), strict=True):
        assert text_of(with_class(card, "text")[0]) == chunk.text
        is_dropped = chunk.position in CASES[index].missing
        assert ("not in the prompt" in text_of(card)) == is_dropped
        if page.attributions:
            share = page.shares(0, Method.SHAPLEY).get(chunk.position)
            assert ("not computed" if share is None else nats(share)) in text_of(card)


def test_evidence_is_marked_on_its_words() -> None:
    """The marked words are the sentence that the support check quoted, coloured by what it says."""
    page = page_of(example_explanations()[0])
    against = with_class(chunk_cards(page, 0, {}), "evidence")
    assert [text_of(node) for node in against] == ["The retention period of the kestrel queue is 14 days."]
    assert "against" in against[0].css
    agreeing = with_class(chunk_cards(page, 1, {}), "evidence")
    assert [text_of(node) for node in agreeing] == ["Its owner is the Lagos team."]
    assert "against" not in agreeing[0].css


def test_a_part_that_is_not_in_the_prompt_is_named_and_struck_through() -> None:
    """What the prompt lacks of a chunk, and that its place was a choice, stand there in words."""
    page = page_of(example_explanations()[0])
    chunk = next(chunk for chunk in page.trace.chunks if " is 14 days" in chunk.text)
    at = chunk.text.index(" is 14 days")
    found = replace(
        page.alignments[chunk.position],
        state=AlignmentState.PARTIAL,
        absent=((at, at + 11), (len(chunk.text) - 5, len(chunk.text))),
        is_ambiguous=True,
    )
    page = replace(page, alignments={**page.alignments, chunk.position: found})
    drawn = with_class(chunk_cards(page, 0, {}), "card")
    number = str(chunk.position + 1)
    (card,) = [each for each in drawn if text_of(with_class(each, "place")[0]) == number]
    said = [text_of(node) for node in with_class(card, "lacks")]
    assert said == [
        f"Not in the prompt: “is 14 days” and 1 other part, 16 of {len(chunk.text)} characters, struck "
        "through below.",
        "This text stands in the prompt more than once: which place is this chunk's was a choice.",
    ]
    lost = "".join(text_of(node) for node in with_class(card, "lost"))
    assert lost == " is 14 days" + chunk.text[-5:]
    assert text_of(with_class(card, "text")[0]) == chunk.text
    assert sum(len(with_class(each, "lacks")) for each in drawn) == len(said)


def test_bars_lie_inside_their_track() -> None:
    """Bars of one span share one scale whose zero is where the sign turns; none leaves its track."""
    for explanation in example_explanations():
        page = page_of(explanation)
        for span in page.spans:
            fills = with_class(chunk_cards(page, span.index, {}), "fill")
            for fill in fills:
                left, width = fill.numbers["left"], fill.numbers["width"]
                assert -1e-9 <= left <= 1 + 1e-9
                assert 0 <= width <= 1 + 1e-9
                assert left + width <= 1 + 1e-9


def test_heat_keeps_text_and_evidence() -> None:
    """With token heat on, the text stays whole, and the hottest words get the strongest step."""
    explanation = example_explanations()[0]
    page = page_of(explanation)
    heats = {heat.position: heat for heat in explanation.heats if heat.span == 0}
    cards = chunk_cards(page, 0, heats)
    texts = [text_of(node) for node in with_class(cards, "text")]
    assert texts == [chunk.text for chunk in page.trace.chunks]
    assert [text_of(node) for node in with_class(cards, "h4")] == ["14"]
    assert "".join(text_of(node) for node in with_class(cards, "evidence")) == (
        "The retention period of the kestrel queue is 14 days."
    )


@pytest.mark.parametrize(
    ("value", "step"),
    [
        (0.0, ""),
        (0.19, ""),
        (0.21, "heat h1"),
        (-0.5, "heat h2 cold"),
        (0.99, "heat h4"),
        (-1.0, "heat h4 cold"),
    ],
)
def test_heat_has_five_steps(value: float, step: str) -> None:
    """Heat is quantised to none and four strengths, with its sign."""
    assert heat_step(value, 1.0) == step


def test_too_many_tokens_are_drawn_without_heat() -> None:
    """A chunk with more hot tokens than a browser likes is drawn plain, and whole."""
    page = page_of(example_explanations()[0])
    many = TokenHeat(
        span=0,
        position=1,
        method=Method.INPUT_X_GRADIENT,
        starts=tuple(range(6_000)),
        ends=tuple(range(1, 6_001)),
        values=(1.0,) * 6_000,
    )
    assert with_class(chunk_cards(page, 0, {1: many}), "heat") == []


@pytest.mark.parametrize("index", INDICES)
def test_prompt_is_drawn_exactly(index: int) -> None:
    """The prompt tab shows the messages as sent, with each aligned chunk marked on its own words."""
    page = page_of(example_explanations()[index])
    drawn = prompt_messages(page)
    for message, node in zip(page.trace.prompt, drawn, strict=True):
        (body,) = with_class(node, "body")
        tags = [text_of(tag) for tag in with_class(body, "chip")]
        text = text_of(body)
        for tag in tags:
            text = text.replace(tag, "", 1)
        assert text == message.text
    regions = [text_of(region) for node in drawn for region in with_class(node, "region")]
    inside = [c for c in page.trace.chunks if c.position not in CASES[index].missing]
    assert regions == [f"chunk {chunk.position + 1}{chunk.text}" for chunk in inside]


@pytest.mark.parametrize("index", INDICES)
def test_waterfall_ends_at_v_all(index: int) -> None:
    """The steps start at v(none), each begins where the last ended, and the last reaches v(all)."""
    explanation = example_explanations()[index]
    page = page_of(explanation)
    for span in page.spans:
        steps = waterfall_steps(page, span.index)
        if not explanation.attributions:
            assert steps == []
            assert waterfall_sum(page, span.index) == ""
            continue
        attribution = page.attributions[span.index, Method.SHAPLEY]
        assert steps[0]["start"] == attribution.v_none
        for step, following in pairwise(steps):
            assert step["end"] == pytest.approx(following["start"])
        assert steps[-1]["end"] == attribution.v_all
        assert "the parts sum to the total" in waterfall_sum(page, span.index)
        assert len(waterfall(steps)["layer"]) == 3


def test_heat_map_is_symmetric_about_zero() -> None:
    """The colour scale has equal arms, so blue and orange of the same size mean the same."""
    page = page_of(example_explanations()[0])
    cells = heat_cells(page, 0)
    assert len(cells) == 3 * 4
    layers = heat_map(cells)["layer"]
    (domain,) = [
        layer["encoding"]["color"]["scale"]["domain"]
        for layer in layers
        if "scale" in layer["encoding"].get("color", {})
    ]
    assert domain == [-9.64, 0, 9.64]
    shown = [cell["shown"] for cell in cells]
    assert [text_of(cell) for cell in walk(heat_table(cells)) if cell.tag == "td"] == shown


def test_heat_map_says_what_was_not_computed() -> None:
    """A chunk outside the prompt has a dash, not a zero."""
    cells = heat_cells(page_of(example_explanations()[3]), None)
    shown = [(cell["share"], cell["shown"]) for cell in cells]
    assert shown == [(0.4, "+0.40"), (-0.1, "−0.10"), (None, "–")]


def test_heat_map_is_capped() -> None:
    """Forty spans and chunks are cut to what a screen holds; the selected span stays."""
    kind = VerdictKind.GROUNDED
    said = [Said(words=f"word{number}", verdict=kind, why="") for number in range(40)]
    answer = tuple(part for entry in said for part in (entry, " "))
    case = Case(
        question="?",
        chunks=tuple((f"s{i}", f"t{i}") for i in range(40)),
        answer=answer,
        scorer=None,
        fitness=None,
    )
    page = page_of(explain(case))
    cells = heat_cells(page, 39)
    assert len({cell["row"] for cell in cells}) == MAX_SPANS
    assert len({cell["place"] for cell in cells}) == MAX_CHUNKS
    assert 39 in {cell["row"] for cell in cells}


def test_equal_words_stay_apart() -> None:
    """Two spans with the same words, or two chunks of one source, keep rows and columns of their own."""
    said = Said(words="7", verdict=VerdictKind.GROUNDED, why="", shares=(1.0, 2.0))
    case = Case(question="?", chunks=(("a", "x"), ("a", "y")), answer=(said, " and ", said))
    page = page_of(explain(case))
    cells = heat_cells(page, None)
    assert len({cell["span"] for cell in cells}) == 2
    assert len({cell["chunk"] for cell in cells}) == 2
    assert len({step["label"] for step in waterfall_steps(page, 0)}) == 4


def test_leave_one_out_equals_the_share_in_an_additive_game() -> None:
    """In the additive example game, removing one chunk costs exactly its share."""
    explanation = example_explanations()[0]
    page = page_of(explanation)
    assert explanation.coalitions is not None
    alone = without_one(explanation.coalitions, page.spans[0])
    assert alone == pytest.approx(page.shares(0, Method.SHAPLEY))
    assert "leave one out (nats)" in text_of(methods_table(page, page.spans[0]))


def test_hostile_text_stays_text() -> None:
    """Payloads end as strings in the tree: no tag, attribute name, class or link is made of them."""
    page = page_of(hostile_explanation())
    drawn = [
        question_block(page.trace),
        answer_block(page.trace.answer, page.spans, page.verdicts, 0),
        *[finding(page, span) for span in page.spans],
        chunk_cards(page, 0, {}),
        *prompt_messages(page),
        heat_table(heat_cells(page, 0)),
        methods_table(page, page.spans[0]),
    ]
    script = (COMPONENTS / "nodes.js").read_text("utf-8")
    tags = set(re.findall(r'"(\w+)"', script[script.index("TAGS") : script.index("ATTRIBUTES")]))
    names = set(re.findall(r'"([\w-]+)"', script[script.index("ATTRIBUTES") : script.index("LINK")]))
    for node in (inner for tree in drawn for inner in walk(tree)):
        assert node.tag in tags
        assert set(node.attributes) <= names
        assert re.fullmatch(r"[\w -]*", node.css)
        assert node.href is None or re.fullmatch(r"trace\?[\w=&-]+", node.href)
    text = "".join(text_of(tree) for tree in drawn)
    assert all(payload in text for payload in HOSTILE)
    assert json.loads(json.dumps([to_plain(tree) for tree in drawn]))


def test_links_are_ours() -> None:
    """A row's address is relative and holds only an id and a number, so the browser accepts it."""
    trace_id = example_explanations()[0].trace.id
    assert link_to_trace(trace_id, 3) == f"trace?id={trace_id}&span=3"
    assert link_to_trace(trace_id) == f"trace?id={trace_id}"


def test_children_that_are_none_are_left_out() -> None:
    """Optional parts need no condition at the place that draws."""
    assert el("p", "", "a", None, "b").children == ("a", "b")


@pytest.mark.parametrize(
    ("reliance", "words"),
    [(0.0, "did not change"), (1.0, "2.7 times likelier"), (-1.0, "2.7 times less likely"), (900.0, "2e+17")],
)
def test_reliance_in_words(reliance: float, words: str) -> None:
    """Nats are also said as a factor, without overflow."""
    assert words in likelier(reliance)


def test_small_wordings() -> None:
    """Times, numbers and cut texts read as they should."""
    assert [span_of_time(s) for s in (-5, 59, 61, 7_200, 200_000)] == ["0 s", "59 s", "1 min", "2 h", "2 d"]
    assert (nats(None), nats(-1.234), nats(0.5)) == ("–", "−1.23", "+0.50")
    assert cut("a\n b\tc", 10) == "a b c"
    assert cut("abcdef", 4) == "abc…"


def test_evidence_of_the_corpus_is_drawn_as_text() -> None:
    """Row, rank, k, why it was not used and every search are there as words; markup in a row stays text."""
    explanation, hostile = example_explanations()[0], " ".join(HOSTILE)
    span = explanation.spans[0]
    row = CorpusEvidence(
        table="public.runbooks",
        row_id="<b>7</b>",
        state=SupportState.CONTRADICTED,
        rule="another value for the subject",
        cause=Cause.RANKED_TOO_LOW,
        start=0,
        end=9,
        quote=hostile,
        rank=14,
        is_exact=False,
        found_by=("query, nearest vectors",),
    )
    hidden = replace(row, quote="", cause=Cause.FILTERED_OUT, passes_filter=False, rank=2, is_exact=True)
    search = CorpusSearch(
        text="claim",
        way="all words",
        is_filtered=True,
        is_exact=False,
        is_complete=False,
        found=3,
        seconds=0.25,
        note=hostile,
    )
    look = CorpusLook(
        span=span.index,
        table="public.runbooks",
        rows=1_000,
        k=4,
        is_k_known=True,
        is_filtered=True,
        seconds=1.5,
        searches=(search,),
        notes=(hostile,),
    )
    shown = page_of(
        replace(
            explanation,
            corpus_looks=(look,),
            verdicts=tuple(
                replace(verdict, corpus_evidence=(row, hidden)) if verdict.span == span.index else verdict
                for verdict in explanation.verdicts
            ),
        )
    )
    section = corpus_section(shown, span.index)
    assert section is not None
    assert "The retriever's search: k = 4, no filter." in text_of(section)
    told: dict[str, Json] = {"retrieval": {"k": 4, "filter": {"tenant": hostile}, "search_type": "mmr"}}
    noted = replace(shown.explanation, trace=replace(explanation.trace, metadata={"ragblame": told}))
    with_filter = corpus_section(page_of(noted), span.index)
    assert with_filter is not None
    assert 'k = 4, filter {"tenant": "<script>' in text_of(with_filter)
    assert text_of(with_filter).count(", mmr.") == 1
    first, second = (text_of(card) for card in with_class(section, "card"))
    assert cut(hostile, 400) in first
    assert "about rank 14 for the query (approximate) · k = 4 · found by query, nearest vectors" in first
    assert "other rows ranked before it" in first
    assert "<b>7</b>" in first
    assert "exact rank 2" in second
    assert "does not pass the retriever's filter" in second
    assert "its text was not stored" in second
    assert "not finished" in text_of(with_class(section, "searches")[0])
    assert "1 search in public.runbooks of about 1,000 rows, 1.50 s" in text_of(section)
    assert {node.tag for node in walk(section)} <= {
        "section", "h4", "article", "header", "span", "p", "div", "mark", "details", "summary", "table",
        "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert corpus_section(page_of(explanation), span.index) is None


def test_guilty_lines_of_the_prompt_are_quoted() -> None:
    """The line is quoted from the prompt as it stands there, with the message it stands in."""
    explanation = example_explanations()[0]
    span = explanation.spans[0]
    line = PromptLine(message=0, start=0, end=12)
    nowhere = PromptLine(message=99, start=0, end=12)  # of an earlier prompt
    shown = page_of(
        replace(
            explanation,
            verdicts=tuple(
                replace(verdict, prompt_evidence=(line, nowhere)) for verdict in explanation.verdicts
            ),
        )
    )
    (quoted,) = with_class(finding(shown, span), "guilty")
    assert cut(explanation.trace.prompt[0].text[:12], 300) in text_of(quoted)
    assert "message 1" in text_of(quoted)
