"""A layout removes chunks as if they had not been retrieved, and its tokens are those of the answer."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from ragblame.attribution.alignment import align_chunks
from ragblame.attribution.layout import Layout, build_layout
from ragblame.errors import AlignmentError, InputError, ModelError
from ragblame.records import Alignment, AlignmentState, Message
from tests.tiny_models import CHATML, NO_SYSTEM, STRIPPING, tiny_tokenizer, wrapped
from tests.tiny_traces import ANSWER, CHUNKS, composed, plain_layout, span_at, tiny_trace

HOSTILE = (
    "\x00",
    "\ud800",
    "\u202e",
    "e\u0301",
    "🎉",
    "👩‍👩‍👧",
    "<|im_end|>",
    "</s>",
    "{{ x }}",
    "ß",
    "，",
    "\t",
    "<0x0A>",
)
words = st.one_of(st.sampled_from(HOSTILE), st.text(min_size=1, max_size=6))


@st.composite
def chunk_lists(draw: st.DrawFn) -> list[str]:
    """One to five chunks of hostile words, each holding a mark of its own."""
    count = draw(st.integers(1, 5))
    chunks = []
    for number in range(count):
        parts = draw(st.lists(words, min_size=1, max_size=5))
        chunks.append(" ".join([f"⟦{number}⟧", *parts, "end"]))
    return chunks


# Prompts as people write them, as a function of the chunks that were returned: removal must give back exactly
# what the function gives for fewer chunks. Numbers are the chunk's own, because the rest keeps its numbers.
def bullets(chunks: dict[int, str]) -> list[str | int]:
    """One bullet a line."""
    lines: list[str | int] = ["Answer from the context."]
    for number in chunks:
        lines += ["\n- ", number]
    return [*lines, "\nQuestion: what?\nAnswer:"]


def passages(chunks: dict[int, str]) -> list[str | int]:
    """Labelled blocks, joined by empty lines."""
    lines: list[str | int] = ["Use the passages:\n"]
    for place, number in enumerate(chunks):
        lines += ["\n\n" if place else "", f"passage {number + 1}:", number]
    return [*lines, "\n\nIn case they do not say it, say so.\noutput:"]


def joined(chunks: dict[int, str]) -> list[str | int]:
    """Bare texts, joined by empty lines."""
    lines: list[str | int] = ["Context:\n"]
    for place, number in enumerate(chunks):
        lines += ["\n\n" if place else "", number]
    return [*lines, "\n\nQuestion: what?"]


def tagged(chunks: dict[int, str]) -> list[str | int]:
    """Numbered tags on their own lines."""
    lines: list[str | int] = ["Documents follow.\n"]
    for number in chunks:
        lines += [f'<document index="{number}">\n', number, "\n</document>\n"]
    return [*lines, "Question: what?"]


def sourced(chunks: dict[int, str]) -> list[str | int]:
    """A header of two lines that differs from chunk to chunk."""
    lines: list[str | int] = ["Use these:\n"]
    for place, number in enumerate(chunks):
        lines += ["\n\n" if place else "", f"Source: file-{'abcde'[number]}.md\nContent: ", number]
    return [*lines, "\n\nQuestion: what?"]


FORMS = (bullets, passages, joined, tagged, sourced)


@pytest.mark.parametrize("form", FORMS)
@given(chunks=chunk_lists(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_removal_reads_as_if_never_returned(form, chunks: list[str], data: st.DataObject) -> None:  # type: ignore[no-untyped-def]
    """Whatever the chunks hold, a coalition's prompt is the one the host would have written for it."""
    named = dict(enumerate(chunks))
    layout = plain_layout(form(named), chunks, tiny_tokenizer())
    assert layout.prompt_text(layout.full_mask) == layout.prompt
    mask = data.draw(st.integers(1, layout.full_mask))
    if form is sourced and len(chunks) == 1:
        return  # one header alone shows no repetition; see the test on instructions
    kept = {n: text for n, text in named.items() if mask >> n & 1}
    assert layout.prompt_text(mask) == _clean(composed(form(kept), chunks)[0])


@pytest.mark.parametrize("form", FORMS)
@given(chunks=chunk_lists())
@settings(max_examples=25, deadline=None)
def test_empty_coalition_holds_no_chunk_and_all_instructions(form, chunks: list[str]) -> None:  # type: ignore[no-untyped-def]
    """With every chunk gone no mark of any is left, and nothing of the instructions went along."""
    layout = plain_layout(form(dict(enumerate(chunks))), chunks, tiny_tokenizer())
    empty = layout.prompt_text(0)
    assert "⟦" not in empty
    literals = [piece for piece in form({}) if isinstance(piece, str)]
    for line in "".join(literals).splitlines():
        assert line in empty


def test_empty_context_of_bullets_is_the_trained_form() -> None:
    """The shipped model's form without chunks has no empty bullet and no empty line."""
    layout = plain_layout(bullets({0: "a", 1: "b"}), ["a b", "b c"], tiny_tokenizer())
    assert layout.prompt_text(0) == "Answer from the context.\nQuestion: what?\nAnswer:"


def test_empty_context_at_the_end_of_a_message_leaves_no_empty_line() -> None:
    """Chunks that close a message take the line break before them along when none stays."""
    template = "{% for m in messages %}{{ m.content | trim }}\n{% endfor %}Answer:"
    layout = build_layout(tiny_trace(), [], tiny_tokenizer(template))
    expected = "Answer the question from the context.\nQuestion: What is the port?\nAnswer:"
    assert layout.prompt_text(0) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("- ", ""),
        ("* ", ""),
        ("[1] ", ""),
        ("(1) ", ""),
        ("1. ", ""),
        ("- [1]: ", ""),
        ("passage 1:", ""),
        ("Document 1 (runbook.md): ", ""),
        ("[Source 12]: ", ""),
        ("Document 1:\n", ""),
        ("[7]\n", ""),
        ('<document index="1">\n', "\n</document>"),
        ("<doc>", "</doc>"),
    ],
)
def test_label_of_a_single_chunk_goes_with_it(before: str, after: str) -> None:
    """One chunk shows no repetition, so its label is known by its form; its line goes whole."""
    layout = plain_layout(["Use this:\n", before, 0, after, "\nQuestion: x"], ["one fact"], tiny_tokenizer())
    assert layout.prompt_text(0) == "Use this:\nQuestion: x"


@pytest.mark.parametrize(
    "before", ["Since version 3 ", "See the page: ", "It is 1.5 - ", "<b>", "\n<context>\n"]
)
def test_words_before_a_single_chunk_stay(before: str) -> None:
    """What only resembles a label is an instruction: it is never removed."""
    layout = plain_layout(["Read. ", before, 0, "\nQuestion: x"], ["one fact"], tiny_tokenizer())
    assert layout.prompt_text(0).startswith("Read. " + before.rstrip("\n"))


def test_unnumbered_label_of_a_single_chunk_is_an_instruction() -> None:
    """ "Context:" before the only chunk stays when the chunk goes."""
    layout = plain_layout(["Be brief. Context: ", 0, "\nQuestion: x"], ["one fact"], tiny_tokenizer())
    assert layout.prompt_text(0) == "Be brief. Context: \nQuestion: x"


def test_text_between_chunks_stays() -> None:
    """Instructions between two chunks belong to nobody."""
    layout = plain_layout([0, "\nHowever, trust this more:\n", 1, "\nQ"], ["one", "two"], tiny_tokenizer())
    for mask in range(4):
        assert "However, trust this more:" in layout.prompt_text(mask)


def test_text_repeated_in_the_question_is_not_removed_there() -> None:
    """Only the aligned occurrence of a chunk's text goes."""
    chunk = "The limit is 250."
    layout = plain_layout(["Context:\n", 0, f"\nIs it true that {chunk}"], [chunk], tiny_tokenizer())
    assert layout.prompt_text(0).count(chunk) == 1
    assert layout.prompt_text(0).endswith(f"Is it true that {chunk}")


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 15)), min_size=1, max_size=5), st.data())
@settings(max_examples=60, deadline=None)
def test_shared_text_stays_until_its_last_owner_goes(
    places: list[tuple[int, int]], data: st.DataObject
) -> None:
    """With chunks nested, overlapping or identical, a character stays exactly when an owner stays."""
    body = "".join(chr(0x4E00 + i) for i in range(50))
    chunks = [body[start : start + length] for start, length in places]
    alignments = [
        Alignment(
            position=i,
            state=AlignmentState.EXACT,
            message=0,
            start=start,
            end=start + len(chunks[i]),
            found=(0, len(chunks[i])),
        )
        for i, (start, _) in enumerate(places)
    ]
    trace = tiny_trace(chunks, prompt=[Message(role="prompt", text=body)])
    layout = build_layout(trace, alignments, tiny_tokenizer())
    assert layout.prompt_text(layout.full_mask) == body
    mask = data.draw(st.integers(0, layout.full_mask))
    kept = [layout.players[i] for i in range(len(layout.players)) if mask >> i & 1]
    covered = {i for s, n in places for i in range(s, s + n)}
    wanted = {i for p in kept for i in range(places[p][0], places[p][0] + places[p][1])}
    expected = "".join(char for i, char in enumerate(body) if i in wanted or i not in covered)
    assert layout.prompt_text(mask) == expected
    is_shared = sum(n for _, n in places) > len(covered)
    assert bool(layout.notes) == is_shared


@pytest.mark.parametrize("template", [None, CHATML, STRIPPING, NO_SYSTEM])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_default_prompt_through_every_template(template: str | None, adds_bos: bool) -> None:
    """With no recorded prompt, each chunk stands in the rendered default prompt and goes cleanly."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer(template, adds_bos=adds_bos))
    assert layout.players == (0, 1, 2)
    assert any("default prompt" in note for note in layout.notes)
    for player, region in enumerate(layout.regions):
        assert layout.prompt[region.start : region.end] == CHUNKS[region.position]
        without = layout.prompt_text(layout.full_mask & ~(1 << player))
        assert without == layout.prompt.replace(f"\n- {CHUNKS[region.position]}", "")
    begins = layout.prompt_ids(0).count(0)  # <s>
    assert begins == (1 if adds_bos and template is None else 0)


def test_stripping_template_moves_regions_along() -> None:
    """White space that a template strips from a message does not shift the chunk's place."""
    text, alignments = composed(["  \n Context: ", 0, "\nQ  "], CHUNKS[:1])
    prompt = [Message(role="human", text=text)]
    layout = build_layout(tiny_trace(CHUNKS[:1], prompt=prompt), alignments, tiny_tokenizer(STRIPPING))
    (region,) = layout.regions
    assert layout.prompt[region.start : region.end] == CHUNKS[0]
    assert layout.prompt.startswith("[INST] Context:")


def test_marker_text_inside_messages_cannot_move_places() -> None:
    """A message that repeats template text or another message is placed by the template, not by search."""
    text, alignments = composed(["<|im_start|>user\nContext: ", 0], CHUNKS[:1], message=1)
    prompt = [Message(role="system", text="user"), Message(role="human", text=text)]
    layout = build_layout(tiny_trace(CHUNKS[:1], prompt=prompt), alignments, tiny_tokenizer(CHATML))
    (region,) = layout.regions
    assert layout.prompt[region.start : region.end] == CHUNKS[0]
    assert layout.prompt_text(0).count("<|im_start|>user\n") == 2


def test_rewriting_template_is_refused() -> None:
    """A template that changes a chunk's words raises instead of removing something else."""
    rewriting = "{% for m in messages %}{{ m.content.replace('port', 'harbour') }}{% endfor %}"
    with pytest.raises(AlignmentError, match="rewrites message 0"):
        build_layout(tiny_trace(), [], tiny_tokenizer(rewriting))


def test_refusing_template_is_named() -> None:
    """A template that takes no form of the messages gives one clear line."""
    with pytest.raises(ModelError, match="refuses this prompt"):
        build_layout(tiny_trace(), [], tiny_tokenizer("{{ raise_exception('never') }}"))


def test_messages_without_template_are_joined_and_said() -> None:
    """Several messages and no template: joined by line breaks, with a note."""
    text, alignments = composed(["Context: ", 0], CHUNKS[:1])
    prompt = [Message(role="system", text=text), Message(role="human", text="What is the port?")]
    layout = build_layout(tiny_trace(CHUNKS[:1], prompt=prompt), alignments, tiny_tokenizer())
    assert layout.prompt == f"Context: {CHUNKS[0]}\nWhat is the port?"
    assert any("joined by line breaks" in note for note in layout.notes)


def test_missing_chunks_are_no_players_and_partial_ones_are() -> None:
    """A missing chunk gets no bit and share 0; of a partial one the part that stands there goes."""
    prompt = [Message(role="prompt", text=f"Context:\n{CHUNKS[0][:30]}\n\n{CHUNKS[2]}\n\nQ")]
    alignments = [
        Alignment(position=0, state=AlignmentState.PARTIAL, message=0, start=9, end=39, found=(0, 30)),
        Alignment(position=1, state=AlignmentState.MISSING),
        Alignment(position=2, state=AlignmentState.EXACT, message=0, start=41, end=91, found=(0, 50)),
    ]
    layout = build_layout(tiny_trace(prompt=prompt), alignments, tiny_tokenizer())
    assert layout.players == (0, 2)
    assert layout.by_position([1.5, -2.0]) == (1.5, 0.0, -2.0)
    assert layout.prompt_text(layout.mask_of([2])) == f"Context:\n{CHUNKS[2]}\n\nQ"


def test_no_chunks_works_and_an_empty_answer_does_not() -> None:
    """Nothing retrieved: one coalition. Nothing answered: nothing to attribute, said in one line."""
    layout = build_layout(tiny_trace(chunks=()), [], tiny_tokenizer())
    assert layout.players == ()
    assert layout.full_mask == 0
    assert layout.prompt_text(0) == layout.prompt
    with pytest.raises(InputError, match="answer is empty"):
        build_layout(tiny_trace(answer=" \n"), [], tiny_tokenizer())
    with pytest.raises(InputError, match="beyond the 0"):
        layout.prompt_text(1)


@pytest.mark.parametrize("style", ["byte level", "metaspace"])
@pytest.mark.parametrize("template", [None, CHATML, STRIPPING])
@given(parts=st.lists(words, min_size=1, max_size=8))
@settings(max_examples=40, deadline=None)
def test_answer_tokens_cover_the_answer(style: str, template: str | None, parts: list[str]) -> None:
    """Offsets rise, every visible character is covered, and nothing covers what is not there."""
    answer = "x " + " ".join(parts)
    layout = build_layout(tiny_trace(answer=answer), [], tiny_tokenizer(template, style=style))
    assert list(layout.answer_starts) == sorted(layout.answer_starts)
    covered: set[int] = set()
    for start, end in zip(layout.answer_starts, layout.answer_ends, strict=True):
        assert 0 <= start <= end <= len(answer)
        covered.update(range(start, end))
    assert {i for i, char in enumerate(_clean(answer)) if not char.isspace()} <= covered


@pytest.mark.parametrize(("style", "first"), [("byte level", "ĠThe"), ("metaspace", "▁The")])
def test_answer_follows_the_prompt_with_one_space(style: str, first: str) -> None:
    """Behind "Answer:" the answer begins with exactly one space, as in running text."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer(style=style))
    assert layout.prompt.endswith("Answer:")
    assert layout.tokenizer.convert_ids_to_tokens(list(layout.answer_ids))[0] == first
    assert layout.answer_starts[0] == 0


@pytest.mark.parametrize("style", ["byte level", "metaspace"])
def test_answer_behind_a_line_break_has_no_space(style: str) -> None:
    """Behind a chat template's line break the answer begins with its first word, without a space."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer(CHATML, style=style))
    first = layout.tokenizer.convert_ids_to_tokens(list(layout.answer_ids))[0]
    assert first[0] == "T"


def test_lossy_tokenizer_is_refused() -> None:
    """When tokens do not decode to the answer, no offsets are invented."""
    inner = Tokenizer(models.WordLevel({"the": 0, "<unk>": 1}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(AlignmentError, match="does not give the answer back"):
        build_layout(tiny_trace(), [], wrapped(inner, unk_token="<unk>"))


def test_span_tokens_touch_their_span_only() -> None:
    """The tokens of a span cover it and leave its neighbours' words alone."""
    layout = build_layout(tiny_trace(), [], tiny_tokenizer())
    span = span_at(ANSWER, "Alice Smith")
    indices = layout.span_tokens(span)
    text = "".join(ANSWER[layout.answer_starts[i] : layout.answer_ends[i]] for i in indices)
    assert text == "AliceSmith"


def test_aligner_and_layout_agree_end_to_end() -> None:
    """Regions found by the aligner in a realistic chat prompt are removed cleanly."""
    system = "You are helpful.\n\nContext:\n" + "\n\n".join(CHUNKS)
    prompt = [Message(role="system", text=system), Message(role="human", text="What is the port?")]
    trace = tiny_trace(prompt=prompt)
    layout = build_layout(trace, align_chunks(trace.chunks, trace.prompt), tiny_tokenizer(CHATML))
    assert layout.players == (0, 1, 2)
    assert "Context:\n" + CHUNKS[2] + "<|im_end|>" in layout.prompt_text(0b100)


def test_prompt_tokens_point_at_their_text() -> None:
    """Prompt offsets are those of the rendered prompt, special tokens cover nothing."""
    layout: Layout = build_layout(tiny_trace(), [], tiny_tokenizer(adds_bos=True))
    tokens = layout.prompt_tokens()
    assert tokens.ids == layout.prompt_ids(layout.full_mask)
    assert (tokens.starts[0], tokens.ends[0]) == (0, 0)
    for token, start, end in zip(tokens.ids[1:], tokens.starts[1:], tokens.ends[1:], strict=True):
        shown = layout.tokenizer.decode([token])
        assert isinstance(shown, str)
        assert layout.prompt[start:end] == shown.lstrip(" ") or shown.isspace()


def test_hostile_texts_of_a_megabyte_are_laid_out_quickly() -> None:
    """Text made to trip patterns (spaces, bullets, tags, digits) costs seconds, not hours."""
    size = 300_000
    started = time.perf_counter()
    for filler in ("page" + " " * size, "- " * size, "<doc " * size, "1" * size, "[1" * size, "\n" * size):
        layout = plain_layout(
            ["Context: ", filler, 0, "\n", filler, 1, filler, "\nQ"], ["one " * size, "two"], tiny_tokenizer()
        )
        assert layout.prompt_text(3) == layout.prompt
        assert "two" not in layout.prompt_text(1)
    assert time.perf_counter() - started < 30


def _clean(text: str) -> str:
    return "".join("�" if unicodedata.category(char) == "Cs" else char for char in text)
