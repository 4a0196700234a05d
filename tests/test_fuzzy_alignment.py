"""Chunks that a chain edited, cut, escaped or repeated are found in the prompt truly or not at all.

Row 16 of the capture pitfalls: separators, templates, numbered citations, truncation mid-chunk, one text in
two chunks, chunk text inside chat history. The truth is known because the tests write the prompts.
"""

import html
import json
import random
import string
import time
import unicodedata
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.alignment_notes import alignment_notes
from ragblame.attribution.blocks import MIN_PARTIAL
from ragblame.attribution.fuzzy_alignment import MAX_INSERTED
from ragblame.attribution.pairing import paired
from ragblame.attribution.spans import segment
from ragblame.attribution.verdicts.support import examine
from ragblame.records import MASK, Alignment, AlignmentState, SpanKind, SupportState
from tests.test_alignment import LONG, assert_true_of_text, chunks_of, present_text, prompt_of

# Several scripts: spaced and not, right to left, outside the BMP, with combining marks and joiners.
WORDS = (
    "gateway", "timeout", "basin", "8443", "e-mail", "naïve", "cafe\u0301", "Straße", "重启", "サービス",
    "서버", "مرحبا", "בוקר", "हिन्दी", "\u202eabc\u202c", "😀", "👩\u200d👩\u200d👧", "🇩🇪", "𝔘𝔫𝔦", "Ω",
    "a\u0308\u0323",
)  # fmt: skip
TEMPLATES = (
    ("", "{text}", "\n\n"),
    ("Context:\n", "- {text}", "\n"),
    ("Use only these:\n", "[{number}] {text}", "\n\n"),
    ("", "Document {number} (title: {{{{ x }}}}):\n{text}", "\n---\n"),
    ("<docs>", '<doc id="{number}">{text}</doc>', ""),
    ("{% for d in docs %}", "{{{{ {text} }}}}", "{% endfor %}"),
    ("", "{number}. {text} [{number}]", "; "),
)
HEAD, QUESTION = "You answer from the context.\n", "\nQuestion: what is the timeout?"


@st.composite
def chunk_texts(draw: st.DrawFn) -> list[str]:
    """One to five texts; each says its own number twice, so no two are alike."""
    seed = draw(st.integers(0, 2**32))
    rng = random.Random(seed)
    found = []
    for number in range(draw(st.integers(1, 5))):
        words = rng.choices(WORDS, k=rng.randint(4, 60))
        at = rng.randint(0, len(words))
        mark = f"mark{number}{rng.randint(0, 10**9)}"
        found.append(rng.choice([" ", " ", "\n", "  "]).join([mark, *words[:at], mark[::-1], *words[at:]]))
    return found


def rendered(texts: list[str], template: tuple[str, str, str]) -> tuple[str, list[int]]:
    """A prompt that holds the texts, and where each begins."""
    before, each, between = template
    prompt, starts = HEAD + before, []
    for number, text in enumerate(texts, start=1):
        label, closing = each.format(text="\0", number=number).split("\0")
        prompt += (between if number > 1 else "") + label
        starts.append(len(prompt))
        prompt += text + closing
    return prompt + QUESTION, starts


def one(chunk: str, *prompt: str) -> Alignment:
    """The alignment of a single chunk, checked to be true of the text."""
    chunks, messages = chunks_of(chunk), prompt_of(*prompt)
    [found] = align_chunks(chunks, messages)
    assert_true_of_text(found, chunks[0], messages)
    return found


@given(chunk_texts(), st.sampled_from(TEMPLATES))
@settings(max_examples=150, deadline=None)
def test_a_template_places_every_chunk_exactly(texts: list[str], template: tuple[str, str, str]) -> None:
    """Row 16: behind any separator, label, tag or Jinja brace each chunk is exact at its true offset."""
    prompt, starts = rendered(texts, template)
    found = align_chunks(chunks_of(*texts), prompt_of(prompt))
    assert [(a.state, a.start, a.is_ambiguous, a.absent) for a in found] == [
        (AlignmentState.EXACT, start, False, ()) for start in starts
    ]


@given(chunk_texts(), st.sampled_from(TEMPLATES), st.sampled_from(["\n", " ", " \t ", "\u3000", "\r\n\r\n"]))
@settings(max_examples=150, deadline=None)
def test_reflowed_white_space_is_normalised_at_its_true_offset(
    texts: list[str], template: tuple[str, str, str], blank: str
) -> None:
    """Row 16: however white space is reflowed, each chunk is found whole, where it begins."""
    prompt, starts = rendered([blank.join(text.split()) for text in texts], template)
    found = align_chunks(chunks_of(*texts), prompt_of(prompt))
    assert {a.state for a in found} <= {AlignmentState.EXACT, AlignmentState.NORMALISED}
    assert [a.start for a in found] == starts


@given(chunk_texts(), st.sampled_from(TEMPLATES), st.data())
@settings(max_examples=150, deadline=None)
def test_a_cut_chunk_names_what_is_missing(
    texts: list[str], template: tuple[str, str, str], data: st.DataObject
) -> None:
    """Row 16: cut anywhere, a chunk is partial at its true offset, and the part cut off is named."""
    cuts = [data.draw(st.integers(0, len(text))) for text in texts]
    prompt, starts = rendered([f"{text[:cut]}…" for text, cut in zip(texts, cuts, strict=True)], template)
    chunks, messages = chunks_of(*texts), prompt_of(prompt)
    found = align_chunks(chunks, messages)
    for alignment, chunk, cut, start in zip(found, chunks, cuts, starts, strict=True):
        assert_true_of_text(alignment, chunk, messages)
        kept = len(" ".join(chunk.text[:cut].split()))
        if alignment.state is AlignmentState.MISSING:
            # The chunk before, cut off too, may go on in the same words here and take them.
            places = [(one.start, one.end) for one in found if one.start is not None and one.end is not None]
            taken = any(low < start < high for low, high in places)
            assert taken or kept < max(MIN_PARTIAL, len(chunk.text) / 20) + 2
        elif chunk.text[cut:].strip():
            assert alignment.state is AlignmentState.PARTIAL
            assert (alignment.start, alignment.found and alignment.found[0]) == (start, 0)
            assert alignment.absent[-1][1] == len(chunk.text.rstrip())
            assert sum(end - start for start, end in alignment.absent) == pytest.approx(
                len(chunk.text) - cut, abs=len(chunk.text) - len("".join(chunk.text.split())) + 2
            )


@given(chunk_texts(), st.sampled_from(TEMPLATES), st.integers(25, 200), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_random_edits_never_move_a_chunk(
    texts: list[str], template: tuple[str, str, str], every: int, seed: int
) -> None:
    """One edit in 25 code points or fewer: what is found is true, and lies within the true place."""
    rng = random.Random(seed)
    edited = [edit(text, every, rng) for text in texts]
    prompt, starts = rendered(edited, template)
    chunks, messages = chunks_of(*texts), prompt_of(prompt)
    for alignment, chunk, text, start in zip(
        align_chunks(chunks, messages), chunks, edited, starts, strict=True
    ):
        assert_true_of_text(alignment, chunk, messages)
        if alignment.state is AlignmentState.MISSING:
            assert len(chunk.text) < 3 * MIN_PARTIAL, "a long chunk with few edits is found"
            continue
        assert alignment.start is not None
        assert alignment.end is not None
        assert start - 1 <= alignment.start < alignment.end <= start + len(text) + 1
        present = len(present_text(alignment, chunk))
        assert (
            present >= 0.6 * len("".join(chunk.text.split())) - 8
        )  # repeats may cost a stretch, never a place


def edit(text: str, every: int, rng: random.Random) -> str:
    """The text with one code point replaced, removed or added in every ``every``."""
    parts = list(text)
    for low in range(0, len(parts) - every, every):
        at = low + rng.randrange(every)
        parts[at] = rng.choice(["", "#", parts[at] + "#"])
    return "".join(parts)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda text: json.dumps({"text": text}), id="JSON"),
        pytest.param(lambda text: json.dumps([text], ensure_ascii=False), id="JSON, letters kept"),
        pytest.param(html.escape, id="HTML"),
        pytest.param(lambda text: text.replace('"', "”").replace("'", "’"), id="quotes"),
        pytest.param(lambda text: text.replace(". ", ". [2] "), id="cited sentences"),
        pytest.param(lambda text: text.replace("-", "\u2011"), id="hyphens"),
    ],
)
def test_what_templates_do_to_text_is_an_edit(written: Callable[[str], str]) -> None:
    """Escaped, re-quoted or cited within, a chunk keeps its place; little of it is called absent."""
    text = (
        'Ask the "blue" desk: it\'s open <all day> & night.\nRestart the north-basin pump first. Wait 90 s.\n'
        'Then note "done" in Müller\'s log. The valve stays shut; nobody opens it without the key. '
    ) * 2
    shown = written(text)
    found = one(text, f"Context: {shown} Question?")
    assert found.state is AlignmentState.PARTIAL
    assert found.start is not None
    assert found.end is not None
    assert len("Context: ") <= found.start <= len("Context: ") + 16
    assert found.end <= len("Context: ") + len(shown)
    assert sum(end - start for start, end in found.absent) < len(text) / 8


def test_a_left_out_middle_is_named() -> None:
    """Head and tail stand there, the middle does not: one region, and the gap of the chunk is told."""
    text = " ".join(f"Line {n} of the runbook says step {n * 7}." for n in range(60))
    prompt = f"Context:\n{text[:400]} […] {text[-500:]}\nQuestion?"
    found = one(text, prompt)
    assert (found.start, found.end) == (9, 9 + 400 + 5 + 500)
    [gap] = found.absent
    assert gap == pytest.approx((400, len(text) - 500), abs=2)
    assert alignment_notes([found]) == [
        f"Chunk 1 stands in the prompt only in part: code points {gap[0]}–{gap[1]} of its text are not there."
    ]


def test_foreign_text_between_two_parts_is_not_the_chunk() -> None:
    """Two parts with a page of something else between them are not one place: the longer one is."""
    foreign = " ".join(f"Unrelated sentence {n} about gardening." for n in range(100))
    found = one(LONG + "middle part. " * 200 + LONG[::-1], f"{LONG}{foreign}{LONG[::-1]} and that is all")
    assert found.end is not None
    assert found.start is not None
    assert found.end - found.start < 2 * len(LONG)


def test_a_page_in_place_of_the_middle_splits_the_chunk() -> None:
    """Where foreign text took the room of a left-out middle, the place is the longer side alone."""
    middle = " ".join(f"Step {n} of the middle part is left out." for n in range(60))
    page = " ".join(f"Unrelated sentence {n} about gardening." for n in range(30))
    tail = LONG[::-1][: len(LONG) // 2]
    assert MAX_INSERTED < len(page) < len(middle)
    found = one(f"{LONG} {middle} {tail}", f"{LONG} {page} {tail} and that is all")
    assert (found.start, found.end) == (0, len(LONG.rstrip()))
    short = one(f"{LONG} {middle} {tail}", f"{LONG} [page 7] {tail} and that is all")
    assert short.end == len(f"{LONG} [page 7] {tail}")


def test_a_place_found_by_votes_among_several_is_called_ambiguous() -> None:
    """Text with an edit every few words that stands in two messages: which one it is, is a choice."""
    chunk = (
        "The intake valve of the north basin is opened by hand twice a week and must be closed before the "
        "pump is restarted; ask the shift lead for the key."
    )
    edited = "".join("#" if n % 12 == 0 else c for n, c in enumerate(chunk))
    assert one(chunk, f"1: {edited}", f"2: {edited}").is_ambiguous
    assert not one(chunk, f"1: {edited}", "2: The key lies in the shift lead's desk.").is_ambiguous


def test_a_weak_likeness_is_missing() -> None:
    """Text about the same things in other words is no place, and neither is one turn of phrase."""
    chunk = (
        "The intake valve of the north basin is opened by hand twice a week and must be closed before the "
        "pump is restarted; ask the shift lead for the key."
    )
    other = (
        "By hand the operators open the valve for intake at the basin in the north, two times weekly. Before "
        "they restart pumps it has to be shut. Keys: with the lead of the shift. "
    )
    assert one(chunk, other * 3).state is AlignmentState.MISSING
    every_sixth = "".join("#" if n % 6 == 0 else c for n, c in enumerate(chunk))
    assert one(chunk, every_sixth).state is AlignmentState.MISSING
    # Nine of fifteen code points agree, all in order: many grams vote for the place, and it is none.
    patchy = "".join(c if n % 15 < 9 else "#" for n, c in enumerate(chunk * 2))
    assert one(chunk * 2, f"x {patchy} y").state is AlignmentState.MISSING
    one_in_twelve = "".join("#" if n % 12 == 0 else c for n, c in enumerate(chunk))
    found = one(chunk, f"x {one_in_twelve} y")
    assert (found.state, found.start) == (AlignmentState.PARTIAL, 3)
    assert found.end == pytest.approx(2 + len(chunk), abs=5)


def test_a_place_among_several_is_called_ambiguous() -> None:
    """Chat history quotes a chunk: the place beside the other chunks is taken, and said to be a choice."""
    texts = ["Osprey is down.", "Kestrel is up.", "Heron is up."]
    history, context = "You said: Kestrel is up.", "- Osprey is down.\n- Kestrel is up.\n- Heron is up."
    found = align_chunks(chunks_of(*texts), prompt_of(history, context))
    assert [(a.message, a.is_ambiguous) for a in found] == [(1, False), (1, True), (1, False)]
    assert alignment_notes(found) == [
        "The text of chunk 2 also stands elsewhere in the prompt: the place was chosen by the order of the "
        "chunks."
    ]
    twice = align_chunks(chunks_of("Same.", "Same."), prompt_of("- Same.\n- Same."))
    assert [a.is_ambiguous for a in twice] == [False, False]
    cut = LONG + "The last words are not there."
    assert one(cut, f"1: {LONG}", f"2: {LONG}").is_ambiguous
    assert not one(cut, f"1: {LONG}").is_ambiguous


@given(chunk_texts(), st.integers(1, 3), st.data())
@settings(max_examples=150, deadline=None)
def test_no_place_is_given_twice_while_there_are_others(
    texts: list[str], copies: int, data: st.DataObject
) -> None:
    """Repeated and overlapping chunks take places of their own; they share only what stands there once."""
    doubled = [text for text in texts for _ in range(copies)]
    doubled += [text[len(text) // 2 :] + other for text, other in pairwise(texts)]
    shown = data.draw(st.permutations(doubled))
    prompt, _ = rendered(list(shown), TEMPLATES[2])
    found = align_chunks(chunks_of(*doubled), prompt_of(prompt))
    assert {a.state for a in found} == {AlignmentState.EXACT}
    places = sorted((a.start or 0, a.end or 0) for a in found)
    assert all(left[1] <= right[0] for left, right in pairwise(places))


def test_overlapping_windows_merged_by_the_chain_share_their_text() -> None:
    """Where a chain merged two overlapping chunks into one text, both are exact and their places overlap."""
    text = " ".join(f"Step {n}: turn valve {n * 3}." for n in range(40))
    left, right = text[:500], text[400:]
    first, second = align_chunks(chunks_of(left, right), prompt_of(f"Context: {text}"))
    assert (first.state, first.start, first.end) == (AlignmentState.EXACT, 9, 509)
    assert (second.state, second.start, second.end) == (AlignmentState.EXACT, 409, 9 + len(text))


def test_a_passage_two_cut_chunks_share_is_given_once() -> None:
    """Of two different chunks that begin alike and were cut there, each needs a place of its own."""
    common = LONG[:120]
    chunks = chunks_of(f"{common} The first goes on so and so.", f"{common} But the second does not.")
    for copies in (1, 2):
        found = align_chunks(chunks, prompt_of("\n".join(f"{n}. {common}…" for n in range(copies))))
        states = [a.state for a in found]
        assert states == [AlignmentState.PARTIAL] * copies + [AlignmentState.MISSING] * (2 - copies)
        assert len({a.start for a in found if a.start is not None}) == copies


def test_a_mark_belongs_to_its_letter() -> None:
    """A short text is not found where a combining mark, a joiner or a skin tone would be cut off."""
    assert one("see the cafe", "see the cafe\u0301 now").state is AlignmentState.MISSING
    assert one("hi 👩", "hi 👩\u200d👧 there").state is AlignmentState.MISSING
    assert one("ok 👍", "ok 👍\U0001f3fd").state is AlignmentState.MISSING
    assert one("see the cafe\u0301", "see the cafe\u0301 now").state is AlignmentState.EXACT
    assert one("重启 服务", "请重启 服务器").state is AlignmentState.EXACT


def test_decomposed_letters_are_an_edit() -> None:
    """A prompt in another Unicode normal form still holds the chunk, at offsets of its own text."""
    text = unicodedata.normalize(
        "NFC",
        "Der Schlüssel zum nördlichen Becken liegt beim Schichtführer. Über Nacht führt Jörg die Bücher, "
        "für jede Öffnung gilt: zwei Hände, volle Stärke, keine Späße.",
    )
    shown = unicodedata.normalize("NFD", text)
    found = one(text, f"Kontext: {shown}")
    assert found.state is AlignmentState.PARTIAL
    assert (found.start, found.end) == (9, 9 + len(shown.rstrip()))


def test_masked_text_is_nobodys_place() -> None:
    """A chunk that redaction masked whole is missing; a masked secret inside a chunk costs nothing."""
    assert one(MASK * 300, MASK * 2_000).state is AlignmentState.MISSING
    assert one(f"{MASK * 30} {MASK * 30}", f"- {MASK * 30} {MASK * 30}").state is AlignmentState.MISSING
    assert one(LONG + MASK * 300, MASK * 700).state is AlignmentState.MISSING
    # Masks do not count towards what must agree.
    hidden = f"Key of the gateway: {MASK * 60}"
    assert one(f"{hidden} {LONG}", f"- {hidden} -").state is AlignmentState.MISSING
    assert one(f"{hidden} {LONG}", f"- {hidden} Key of the gateway! -").state is AlignmentState.MISSING
    text = f"The password is {MASK * 12} and the user is admin."
    assert one(text, f"- {text}\n").state is AlignmentState.EXACT


def test_evidence_in_an_absent_part_was_not_in_the_prompt() -> None:
    """A sentence whose value was replaced on the way to the model did not stand in the prompt."""
    text = f"{LONG}The port of the gateway is 8443. {LONG}"
    messages = prompt_of(text.replace("8443", "9999"))
    chunks = chunks_of(text)
    alignments = align_chunks(chunks, messages)
    answer = "The port of the gateway is 8443."
    spans = segment(answer, "").spans
    findings = examine("What is the port of the gateway?", answer, spans, chunks, alignments)
    number = next(span.index for span in spans if span.kind is SpanKind.NUMBER)
    assert findings[number].support.state is not SupportState.ENTAILED
    whole = align_chunks(chunks, prompt_of(text))
    findings = examine("What is the port of the gateway?", answer, spans, chunks, whole)
    assert findings[number].support.state is SupportState.ENTAILED


@given(chunk_texts(), st.integers(5, 60), st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_pairs_never_cross_and_hold_equal_letters(texts: list[str], every: int, seed: int) -> None:
    """The way from a region back into the chunk never runs backwards, and most letters meet their own."""
    own, rng = texts[0], random.Random(seed)
    assume(len(own) > every)
    shown = edit(own, every, rng)
    places = paired(own, shown)
    assert len(places) == len(shown)
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] < len(own)
    pairs = [(own[place], char) for place, char in zip(places, shown, strict=True) if not char.isspace()]
    assert sum(left != right for left, right in pairs) <= 2 * (len(own) // every + 1)
    reflowed = " \n".join(own.split())
    for place, char in zip(paired(own, reflowed), reflowed, strict=True):
        assert char.isspace() or own[place] == char


def test_twenty_chunks_of_four_kilobytes_cost_milliseconds() -> None:
    """20 chunks of 4 kB in a 100 kB prompt: exact within 50 ms, edited, escaped or absent within bounds."""
    rng = random.Random(1)
    pool = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(4_000)]

    def page(length: int) -> str:
        return " ".join(rng.choice(pool) + rng.choice(["", "", ".\n", ","]) for _ in range(length // 5))[
            :length
        ]

    texts = [page(4_000) for _ in range(20)]
    filler = page(20_000)
    shown = {
        "exact": "\n\n".join(texts),
        "JSON": json.dumps([{"text": text} for text in texts]),
        "edited": "\n\n".join(edit(text, 12, rng) for text in texts),
        "absent": page(80_000),
    }
    for name, context in shown.items():
        costs = []
        for _ in range(3):
            began = time.process_time()
            found = align_chunks(chunks_of(*texts), prompt_of(filler + context))
            costs.append(time.process_time() - began)
        print(f"{name}: {min(costs) * 1000:.1f} ms")
        states = {a.state.value for a in found}
        assert states == {{"exact": "exact", "absent": "missing"}.get(name, "partial")}
        assert min(costs) < (0.05 if name == "exact" else 0.5)  # measured 6 ms; 60, 80 and 50 ms
