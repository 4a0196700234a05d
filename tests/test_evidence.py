"""Evidence says the same in every face, loses nothing as JSON, and text of strangers stays text."""

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from ragblame.attribution.evaluation import page
from ragblame.attribution.evaluation.evidence import (
    Bar,
    Bin,
    Confusion,
    Estimate,
    Evidence,
    Reliability,
    Table,
    environment,
    from_json,
)
from ragblame.attribution.evaluation.figures import shown
from ragblame.attribution.evaluation.markdown import to_markdown
from ragblame.attribution.evaluation.report import COLOURS, HEAT_STEPS, to_html
from ragblame.attribution.evaluation.terminal import show
from ragblame.errors import InputError

HOSTILE = (
    "</td></table><script>alert(1)</script>",
    "a|b\n\n# heading\n- list",
    "[click](javascript:alert(1)) ![x](http://x/y.png) <http://evil> **bold** _it_ `code` &lt; ~~no~~",
    '" onmouseover="x" style="background:url(//x)',
    "\x1b[31mred\x1b]0;title\x07 \u202egnirts [bold]x[/bold]",
    "- 1. # > = +",
    "1. one",
    "| --- | --- |",
    "x\\",
    "``` ` ``",
)
texts = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))


def evidence_of(text: str, *, value: float = 0.5) -> Evidence:
    """Every field that can hold text holds this one."""
    return Evidence(
        name=text,
        command=text,
        seed=3,
        environment={text: text},
        tables=(
            Table(
                title=text,
                columns=(f"1{text}", f"2{text}", "3"),
                rows=(
                    (text, 0.25, Estimate(value=value, low=0.4, high=0.6, n=9, dropped=1)),
                    (text, 7, None),
                ),
                note=text,
            ),
            Table(title=text, columns=("empty",), rows=()),
        ),
        confusions=(
            Confusion(title=text, labels=(f"a{text}", f"b{text}"), counts=((8, 2), (0, 5)), note=text),
        ),
        reliabilities=(
            Reliability(
                title=text,
                bins=(Bin(low=0.4, high=0.5, count=12, mean=0.45, share=0.5),),
                ece=0.05,
                note=text,
            ),
        ),
        bars=(
            Bar(name=text, value=value, low=0.4, high=0.6, bound=0.9, sense=">="),
            Bar(name=text, value=value, bound=0.9, sense="<="),
        ),
        notes=(text, text),
    )


class Elements(HTMLParser):
    """The elements and attributes of a page, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@settings(max_examples=60, deadline=None)
@given(texts)
def test_json_gives_back_the_same_evidence(text: str) -> None:
    """Through real JSON text, every field, every kind of cell."""
    evidence = evidence_of(text)
    assert from_json(json.loads(json.dumps(evidence.to_json(), allow_nan=False))) == evidence


def test_json_has_the_keys_of_every_evaluation() -> None:
    """What other programs read: rows by table, bars with interval and whether they hold."""
    value = evidence_of("t").to_json()
    assert value.keys() >= {"name", "environment", "command", "seed", "rows", "bars"}
    assert value["rows"][0] == {
        "table": "t",
        "1t": "t",
        "2t": 0.25,
        "3": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "dropped": 1},
    }
    assert value["bars"] == [
        {"name": "t", "value": 0.5, "interval": [0.4, 0.6], "bound": 0.9, "sense": ">=", "holds": False},
        {"name": "t", "value": 0.5, "interval": None, "bound": 0.9, "sense": "<=", "holds": True},
    ]


def test_what_could_not_be_measured_is_null_and_holds_nothing() -> None:
    """NaN is no JSON; a bar on it falls short whichever way it points."""
    evidence = evidence_of("t", value=math.nan)
    assert [bar.holds for bar in evidence.bars] == [False, False]
    value = json.loads(json.dumps(evidence.to_json(), allow_nan=False))
    assert [bar["value"] for bar in value["bars"]] == [None, None]
    assert math.isnan(from_json(value).bars[0].value)
    assert to_html(evidence).count("falls short") == 2


@settings(max_examples=60, deadline=None)
@given(texts)
def test_hostile_text_stays_text_on_the_page(text: str) -> None:
    """The page has the elements and attributes it has for harmless text, whatever stands in the fields."""
    harmless, hostile = Elements(to_html(evidence_of("x"))), Elements(to_html(evidence_of(text)))
    if shown(text):  # an empty note has no paragraph
        assert hostile.found == harmless.found
    assert not {"script", "img", "iframe", "link", "a"} & {tag for tag, _ in hostile.found}
    assert shown(text) in "".join(hostile.text)


def markup(evidence: Evidence) -> tuple[list[str], str]:
    """The block and inline tokens a Markdown reader finds in the document, and the text it shows."""
    reader = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    kinds, words = [], []
    for token in reader.parse(to_markdown(evidence)):
        kinds.append(token.type)
        for child in token.children or []:
            if child.type == "code_inline" or child.type in ("text", "text_special"):
                words.append(child.content)
            else:
                kinds.append(child.type)
    return kinds, "".join(words)


@settings(max_examples=200, deadline=None)
@given(texts)
def test_hostile_text_stays_text_in_the_document(text: str) -> None:
    """A Markdown reader finds the headings, tables and emphasis it finds for harmless text, and no more."""
    if shown(text):
        kinds, words = markup(evidence_of(text))
        assert kinds == markup(evidence_of("x"))[0]
        assert words.count(shown(text)) >= 12
    assert "\x1b" not in to_markdown(evidence_of(text))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_has_no_power_in_a_terminal(text: str) -> None:
    """No control character reaches the screen and rich's own markup is shown, not obeyed."""
    out = StringIO()
    show(evidence_of(text), Console(file=out, width=400, force_terminal=False))
    said = out.getvalue()
    assert all(sign.isprintable() or sign == "\n" for sign in said)
    assert shown(text) in said
    assert "FALLS SHORT" in said


def test_every_face_shows_every_figure_and_failed_bar() -> None:
    """Terminal, page and document hold the same figures; a bar that falls short is named in each."""
    evidence = evidence_of("word")
    out = StringIO()
    show(evidence, Console(file=out, width=200))
    for face in (out.getvalue(), to_html(evidence), to_markdown(evidence)):
        assert "0.500 (0.400 to 0.600)" in face
        assert "0.0500" in face
        assert "1 of 2 bars hold" in face
        assert "falls short" in face.lower()
        assert re.search(r"\b12\b", face)
        assert re.search(r"\b7\b", face)


def test_figures_are_written_alike() -> None:
    """Three digits, a dash for what could not be measured, an interval behind its figure, no line breaks."""
    written = [
        shown(value) for value in (0.94, 12.0, 123.4, 123456.0, 1.2e-6, 7, None, math.nan, "a\nb", -0.5)
    ]
    assert written == ["0.940", "12.0", "123", "123456", "1.20e-06", "7", "–", "–", "a b", "-0.500"]
    assert shown(Estimate(value=0.5, low=0.25, high=1.0, n=4)) == "0.500 (0.250 to 1.00)"
    assert shown(Estimate(value=math.nan, low=math.nan, high=math.nan, n=0)) == "–"


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast of two colours, 1 to 21."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", COLOURS)
def test_text_of_the_page_is_readable(theme: str) -> None:
    """Every text on every ground it stands on has the contrast of WCAG AA, in light and dark."""
    colours = COLOURS[theme]
    pairs = [(text, "ground") for text in ("text", "quiet", "good", "bad", "mark")]
    pairs += [("text", "raised"), *(("text", f"heat{step}") for step in range(HEAT_STEPS + 1))]
    assert {
        pair: contrast(colours[pair[0]], colours[pair[1]])
        for pair in pairs
        if contrast(colours[pair[0]], colours[pair[1]]) < 4.5
    } == {}
    heats = [luminance(colours[f"heat{step}"]) for step in range(HEAT_STEPS + 1)]
    assert heats == sorted(heats, reverse=theme == "light")


def test_the_page_loads_nothing() -> None:
    """No address, no script: it can be mailed and opened anywhere."""
    html = to_html(evidence_of("x"))
    assert not re.search(r"https?:|//|src=|href=|url\(|@import", html)
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: [],
        lambda value: {},
        lambda value: value | {"rows": []},
        lambda value: value | {"bars": [{"name": "x"}]},
        lambda value: value | {"bars": [value["bars"][0] | {"sense": ">"}]},
        lambda value: value | {"tables": [{"title": "other", "columns": ["3"], "rows": 1, "note": ""}]},
        lambda value: value | {"confusions": [value["confusions"][0] | {"counts": [[1]]}]},
    ],
)
def test_other_json_is_refused(damage: Any) -> None:
    """An error of ours, with the next step, for anything that is not whole evidence."""
    with pytest.raises(InputError, match="ragblame eval"):
        from_json(damage(evidence_of("t").to_json()))


def test_a_table_that_does_not_fit_is_refused() -> None:
    """Ragged rows, two columns of one name, a value that JSON has no word for."""
    with pytest.raises(ValueError, match="2 cells"):
        Table(title="t", columns=("a", "b"), rows=((1,),))
    with pytest.raises(ValueError, match="two columns"):
        Table(title="t", columns=("a", "a"), rows=())
    with pytest.raises(ValueError, match="plain value"):
        Table(title="t", columns=("a",), rows=(([1],),))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no column"):
        Evidence(name="e", command="c", seed=0, tables=(Table(title="t", columns=("table",), rows=()),))


def test_environment_names_versions_but_no_machine_or_user() -> None:
    """What figures depend on; a package that is absent says so."""
    facts = environment(("rich", "no-such-package-of-ours"))
    assert facts["no-such-package-of-ours"] == "not installed"
    assert re.fullmatch(r"[0-9.]+", facts["rich"])
    assert facts.keys() == {"python", "machine", "cores", "load", "rich", "no-such-package-of-ours"}


def test_showing_evidence_needs_no_heavy_library() -> None:
    """JSON made on one machine becomes a page on another that has neither torch nor scikit-learn."""
    faces = ", ".join(f"ragblame.attribution.evaluation.{name}" for name in ("report", "page", "terminal"))
    heavy = "{'torch', 'numpy', 'scipy', 'sklearn', 'transformers'}"
    command = f"import sys, {faces}; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_document_is_made_of_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every file becomes a section; a damaged one is named and leaves the old document alone."""
    first, second, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "evaluation.md"
    first.write_text(json.dumps(evidence_of("world").to_json()), "utf-8")
    second.write_text(json.dumps(evidence_of("labels").to_json()), "utf-8")
    assert page.main([str(first), str(second), "--out", str(out)]) == 0
    text = out.read_text("utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## world", "## labels"]
    second.write_text("{", "utf-8")
    assert page.main([str(first), str(second), "--out", str(out)]) == InputError.exit_code
    assert f"error: {second}" in capsys.readouterr().err
    assert out.read_text("utf-8") == text
