"""Numbers, units, dates and words compare by what they mean, not by how they are written."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragblame.attribution.verdicts.normalise import content_stems, fold, is_negated, stem, words
from ragblame.attribution.verdicts.quantities import Quantity, find_quantities
from ragblame.attribution.verdicts.same_value import is_same_kind, is_same_value


def only(text: str) -> Quantity:
    """The one quantity of a text."""
    [found] = find_quantities(text)
    return found


SAME = [
    ("1,500 ms", "1.5 s"),
    ("1,234,567", "1234567"),
    ("1.234,5", "1,234.5"),
    ("12,5 %", "12.5 percent"),
    ("twenty-five", "25"),
    ("two hundred and five", "205"),
    ("90 minutes", "1.5 hours"),
    ("1 1/2 cups", "1.5 cups"),
    ("½ cup", "1/2 cup"),
    ("5 GB", "5000 MB"),
    ("$1.5 million", "1,500,000 dollars"),
    ("$5m", "5 million USD"),
    ("8-10 minutes", "8 to 10 min"),
    ("2:30 pm", "14:30"),
    ("9 am", "9:00"),
    ("May 3rd, 2024", "2024-05-03"),
    ("3 May 2024", "May 3, 2024"),
    ("(510) 889-8690", "510-889-8690"),
    ("ERR-4051", "err 4051".replace(" ", "-")),
    ("400°F", "400 fahrenheit"),
    ("60 km/h", "60 kilometres per hour"),
    ("60 mph", "60 miles per hour"),
    ("12 V", "12 volts"),
    ("0.33 kV", "330 volt"),
    ("1,500 sq ft", "1500 square feet"),
    ("1 square mile", "640 acres"),
    ("2 bar", "2000 mbar"),
    ("200 kcal", "200 calories"),
    ("1 Gbit/s", "1,000 Mbps"),
    ("3 µs", "3000 ns"),
    ("500 mcg", "0.5 mg"),
    ("90", "90 seconds"),  # one side leaves the unit out
    ("1998", "4 September 1998"),  # the source may say more
    ("May 2024", "3 May 2024"),
]
DIFFERENT = [
    ("90 minutes", "90 seconds"),
    ("2959", "2960"),
    ("-5 °C", "5 °C"),
    ("4 September 1998", "1998"),  # the answer may not say more
    ("3 May 2024", "5 March 2024"),
    ("ERR-4051", "ERR-4052"),
    ("$5", "€5"),
    ("8-10 minutes", "8 minutes"),
    ("14:30", "14:35"),
    ("10.0.0.1", "100.0.1"),
]


@pytest.mark.parametrize(("answer", "source"), SAME)
def test_equal_values_are_equal(answer: str, source: str) -> None:
    """The same value in another notation is the same value."""
    assert is_same_value(only(answer), only(source))


@pytest.mark.parametrize(("answer", "source"), DIFFERENT)
def test_near_misses_differ(answer: str, source: str) -> None:
    """A digit, a unit, a sign or a date off is another value."""
    assert not is_same_value(only(answer), only(source))


@pytest.mark.parametrize(
    ("answer", "source", "expected"),
    [
        ("90 minutes", "30 s", True),
        ("90 minutes", "30 kg", False),
        ("35 psi", "2 bar", True),
        ("60 mph", "60 miles", False),
        ("12 V", "12 W", False),
        ("2959", "4000", True),
        ("2959", "3.5", False),
        ("ERR-4051", "DNS-1312", True),
        ("ERR-4051", "12:30", False),
        ("14:30", "02:00", True),
    ],
)
def test_kinds_tell_what_may_replace_what(answer: str, source: str, expected: bool) -> None:
    """Only a value of the same dimension or form can contradict."""
    assert is_same_kind(only(answer), only(source)) is expected


@pytest.mark.parametrize(
    "text", ["one of them", "May I?", "3D", "no one", "the second", "zero trust", "a.b.c"]
)
def test_words_that_only_look_like_numbers_are_none(text: str) -> None:
    """Pronouns, ordinals and names are not quantities."""
    assert find_quantities(text) == []


@pytest.mark.parametrize(
    ("text", "dimensions"),
    [("won 5 v 3", ["", ""]), ("a 12 V 3 A supply", ["voltage", ""]), ("12 v", ["voltage"])],
)
def test_a_score_is_no_voltage(text: str, dimensions: list[str]) -> None:
    """A small v between two numbers stands for "versus"."""
    assert [found.dimension for found in find_quantities(text)] == dimensions


def test_rounding_is_forgiven_when_announced() -> None:
    """A tolerance makes 300 of 298; without it they differ."""
    assert is_same_value(only("300"), only("298"), tolerance=0.05)
    assert not is_same_value(only("300"), only("298"))


@given(st.text(alphabet="0123456789.,:/-–$€%°kmsGB apmMayth½\u00a0\n()", max_size=60))
@settings(max_examples=400, deadline=None)
def test_quantities_are_where_they_say(text: str) -> None:
    """Offsets cut out the quantity's own text, in order and without overlap; each equals itself."""
    at = 0
    for found in find_quantities(text):
        assert at <= found.start < found.end <= len(text)
        assert text[found.start : found.end] == found.text
        assert is_same_value(found, found)
        assert is_same_kind(found, found)
        at = found.end


@given(st.floats(min_value=0.01, max_value=1e9), st.sampled_from(["ms", "s", "kg", "GB", "%", ""]))
def test_thousands_separators_change_nothing(value: float, unit: str) -> None:
    """A number written with and without separators is one value."""
    assert is_same_value(only(f"{value:,.2f} {unit}"), only(f"{value:.2f} {unit}"))


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_words_are_where_they_say(text: str) -> None:
    """Every word's offsets cut out its surface, for any Unicode."""
    for word in words(text):
        assert text[word.start : word.end] == word.surface
        assert word.folded
        assert word.stem


@pytest.mark.parametrize(
    "forms",
    [
        ("owner", "owns", "owned", "owning"),
        ("timeout", "timeouts"),
        ("city", "cities"),
        ("stop", "stops", "stopped", "stopping"),
        ("approve", "approves", "approved"),
        ("host", "hosted", "hosts"),
        ("Kestrel's", "kestrel", "KESTREL"),
    ],
)
def test_forms_of_a_word_share_a_stem(forms: tuple[str, ...]) -> None:
    """Number, tense, possession and case do not matter."""
    assert len({stem for form in forms for stem in content_stems(form)}) == 1


def test_folding_knows_accents_and_typography() -> None:
    """Case, accents, ligatures and curly quotes fold away."""
    assert fold("Île ﬁne “x”") == 'ile fine "x"'
    assert stem("bus") == "bus"


def test_negation_counts() -> None:
    """Two negations cancel, one does not."""
    assert is_negated(words("it does not leak"))
    assert is_negated(words("it doesn't leak"))
    assert not is_negated(words("it never did not leak"))


def test_a_page_of_digits_is_read_in_bounded_time() -> None:
    """A very long number is a code, and many numbers are capped."""
    started = time.process_time()
    assert only("7" * 100_000).dimension == "code"
    assert len(find_quantities("1 " * 100_000)) <= 200
    assert time.process_time() - started < 3


def test_no_words_deny_nothing() -> None:
    """A span without words, or an empty sentence, is no negation and no error."""
    assert not is_negated([])
    assert is_negated(words("not"))
