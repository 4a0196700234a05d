"""Rows 16 to 40: what a callback must live with beyond the reported bugs. One test a claim."""

import asyncio
import inspect
import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import (
    BaseCallbackHandler,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnablePassthrough,
)
from langchain_core.tools import create_retriever_tool, tool
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run
from pydantic import BaseModel

import ragblame
from ragblame.attribution.alignment import align_chunks
from ragblame.errors import InputError
from ragblame.plugin import run_tree
from ragblame.plugin.answer_map import map_answer
from ragblame.plugin.assembly import Limits, assemble
from ragblame.plugin.counters import counters
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.run_tree import OpenRuns, open_runs
from ragblame.plugin.sampling import is_sampled
from ragblame.plugin.spool import inspect_spool
from ragblame.records import AlignmentState, Message, Trace, TraceStatus
from ragblame.suppression import suppress_capture
from ragblame.traces import new_trace_id
from tests.capture import (
    ANSWER,
    ROOT,
    Collector,
    NotesRetriever,
    check,
    collecting,
    drain,
    installed,
    join,
    make_chain,
    notes_of,
    run_apart,
    settings_for,
    step,
)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Traces go to the test; nothing of ours may have failed at the end, and no run may be left open."""
    with collecting() as collector:
        yield collector


def says(*texts: str | AIMessage) -> GenericFakeChatModel:
    """A model that says these things, one a call."""
    return GenericFakeChatModel(messages=iter(texts))


# 16: from retriever to prompt ------------------------------------------------------------------------------

NOTE = "The intake valve of the north basin is opened by hand twice a week, and never on Sundays."
SHAPES: dict[str, tuple[str, str, AlignmentState]] = {
    "separators": ("{% for d in docs %}---\n{{ d }}\n{% endfor %}", NOTE, AlignmentState.EXACT),
    "numbered": ("{% for d in docs %}[{{ loop.index }}] {{ d }}\n{% endfor %}", NOTE, AlignmentState.EXACT),
    "reflowed": ("{{ docs[0] | replace(' ', '\\n') }}\n{{ docs[1] }}", NOTE, AlignmentState.NORMALISED),
    "cut": ("{{ docs[0][:60] }}\n{{ docs[1] }}", NOTE, AlignmentState.PARTIAL),
    "left out": ("{{ docs[1] }}", NOTE, AlignmentState.MISSING),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_row_16_chunks_are_found_in_what_was_sent(collector: Collector, shape: str) -> None:
    """Through separators, Jinja templates, citations and cuts, each chunk's place is true of the prompt."""
    template, text, state = SHAPES[shape]
    documents = [Document(text), Document("Backups run at 02:30 every night.")]
    prompt = ChatPromptTemplate.from_messages(
        [("system", template), ("human", "q")], template_format="jinja2"
    )
    search = step(lambda text: documents)
    render = step(lambda found: {"docs": [document.page_content for document in found]})
    (search | render | prompt | says(ANSWER)).invoke("q", collector.config())
    trace = collector.only()
    first, second = align_chunks(trace.chunks, trace.prompt)
    assert (first.state, second.state) == (state, AlignmentState.EXACT)
    assert second.message is not None
    assert trace.prompt[second.message].text[second.start : second.end] == documents[1].page_content


def test_row_16_equal_chunks_and_history_do_not_confuse_places(collector: Collector) -> None:
    """The same text in two chunks has two places; the same text in the chat history is neither."""
    documents = [Document(NOTE), Document(NOTE), Document("Backups run at 02:30 every night.")]
    history = [HumanMessage("earlier"), AIMessage(f"I said: {NOTE}")]
    search = step(lambda text: documents)
    render = step(lambda found: [*history, SystemMessage(join(found)), HumanMessage("q")])
    (search | render | says(ANSWER)).invoke("q", collector.config())
    trace = collector.only()
    places = [(found.message, found.start) for found in align_chunks(trace.chunks, trace.prompt)]
    assert places == [(2, 0), (2, len(NOTE) + 2), (2, 2 * len(NOTE) + 4)]
    assert trace.question == "q"


# 17 to 23: which text is the answer ------------------------------------------------------------------------


def rag(model: Runnable[Any, Any], after: Runnable[Any, Any] | None = None) -> Runnable[Any, Any]:
    """The usual chain with this model, and perhaps a step behind it."""
    chain: Runnable[Any, Any] = make_chain(model=model)
    return chain if after is None else chain | after


def test_row_17_a_rewritten_question_is_the_query(collector: Collector) -> None:
    """With a history-aware retriever the rewriter's model run is not the answer, and the query is kept."""
    rewrite = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "{input}")])
    retriever: Runnable[Any, Any] = RunnableBranch(
        (
            lambda inputs: not inputs.get("history"),
            step(lambda inputs: inputs["input"]) | NotesRetriever(),
        ),
        rewrite | says("standalone port question") | StrOutputParser() | NotesRetriever(),
    )
    prompt = ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(context=retriever | step(join)) | {
        "answer": prompt | says(ANSWER) | StrOutputParser()
    }
    history = [HumanMessage("tell me of Kestrel"), AIMessage("a gateway")]
    chain.invoke({"input": "and its port?", "history": history}, collector.config())
    trace = collector.only()
    assert (trace.question, trace.query) == ("and its port?", "standalone port question")
    assert (trace.answer, trace.prompt[-1].text) == (ANSWER, "and its port?")
    assert notes_of(trace)["model_runs"] == 2


@pytest.mark.parametrize("verdict", ["yes, grounded", "port", ANSWER])
def test_row_17_a_judge_after_the_answer_is_not_the_answer(collector: Collector, verdict: str) -> None:
    """The run that wrote the answer counts, even when a judge repeats it word for word."""

    def judged(text: str, config: RunnableConfig) -> dict[str, str]:
        return {"answer": text, "grade": str(says(verdict).invoke(f"Is it true? {text}", config).content)}

    rag(says(ANSWER), step(judged)).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.answer, trace.generated) == (ANSWER, None)
    assert trace.prompt[0].text.startswith("Answer from:")
    assert "answering_run" not in notes_of(trace)


def test_row_17_an_edited_answer_is_found_by_its_words(collector: Collector) -> None:
    """A citation put into the middle does not hand the answer to the rewriter whose one word it contains."""

    def ask(question: str, config: RunnableConfig) -> str:
        says("port").invoke("Give one word", config)
        text = make_chain(model=says(ANSWER)).invoke(question, config)
        return text.replace(" is ", " [1] is ")

    step(ask).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.answer, trace.generated) == ("The port [1] is 2959.", ANSWER)
    assert len(trace.prompt) == 2


def test_row_17_what_only_order_tells_is_called_ambiguous(collector: Collector) -> None:
    """When no text matches, the last run that saw chunks is taken, and the trace says it is a guess."""

    def ask(question: str, config: RunnableConfig) -> str:
        make_chain(model=says("Two thousand nine hundred and fifty-nine.")).invoke(question, config)
        says("Politeness: 5 of 5.").invoke("Rate the tone", config)
        return "2959"

    step(ask).invoke("q", collector.config())
    trace = collector.only()
    assert trace.generated == "Two thousand nine hundred and fifty-nine."
    assert notes_of(trace)["answering_run"] == "ambiguous"


def test_row_17_a_reranker_inside_a_retriever_never_answers(collector: Collector) -> None:
    """A model that a retriever asks is no candidate, even when its text is the answer word for word."""
    ranker = says("It is 2959")

    class Ranked(BaseRetriever):
        def _get_relevant_documents(
            self, query: str, *, run_manager: CallbackManagerForRetrieverRun
        ) -> list[Document]:
            ranker.invoke("rank", {"callbacks": run_manager.get_child()})
            return NotesRetriever().invoke(query, {"callbacks": run_manager.get_child()})

    chain = make_chain(model=says("It is 2959."), retriever=Ranked())
    (chain | step(lambda text: text.strip("."))).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.answer, trace.generated) == ("It is 2959", "It is 2959.")
    assert len(trace.chunks) == 2  # the inner retriever only feeds the outer one


class Failing(FakeListChatModel):
    """A model that fails its first calls."""

    fails: int = 1
    calls: int = 0

    def _call(self, *args: Any, **kwargs: Any) -> str:
        self.calls += 1
        if self.calls <= self.fails:
            raise ConnectionError("overloaded")
        return ANSWER

    def _stream(self, *args: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(content=self._call()))

    async def _astream(self, *args: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        yield ChatGenerationChunk(message=AIMessageChunk(content=self._call()))


@pytest.mark.parametrize("kind", ["fallback", "retry"])
def test_row_18_only_the_successful_attempt_answers(collector: Collector, kind: str) -> None:
    """A fallback or a retry leaves failed attempts in the notes; the answer is the successful one's."""
    model = Failing(responses=[""])
    steady = (
        Failing(responses=[""], fails=9).with_fallbacks([model.with_retry(wait_exponential_jitter=False)])
        if kind == "fallback"
        else model.with_retry(wait_exponential_jitter=False)
    )
    make_chain(model=steady).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.status, trace.answer, len(trace.prompt)) == (TraceStatus.OK, ANSWER, 2)
    attempts = notes_of(trace)["attempts"]
    assert [entry["ended"] for entry in attempts] == ["error"] * (len(attempts) - 1) + ["ok"]
    assert [entry["answered"] for entry in attempts] == [False] * (len(attempts) - 1) + [True]
    assert notes_of(trace)["failed_model_runs"] == ["ConnectionError: overloaded"] * (len(attempts) - 1)


@pytest.mark.parametrize(
    ("kind", "call"),
    [*((kind, call) for kind in ("fallback", "retry") for call in ("invoke", "ainvoke")),
     ("fallback", "stream"), ("fallback", "astream"), ("named fallback", "invoke")],
)  # fmt: skip
def test_row_18_what_a_failed_attempt_found_is_no_chunk(collector: Collector, kind: str, call: str) -> None:
    """A whole chain tried again is one trace, with the chunks of the attempt that answered."""
    first = make_chain(model=Failing(responses=[""]))
    chain: Any = (
        first.with_retry(wait_exponential_jitter=False)
        if kind == "retry"
        else first.with_fallbacks([make_chain()])
    )
    if kind == "named fallback":
        chain = chain.with_config(run_name="support chain")
    config = collector.config()
    if call in ("invoke", "stream"):
        assert "".join(getattr(chain, call)("q", config)) == ANSWER
    elif call == "ainvoke":
        asyncio.run(chain.ainvoke("q", config))
    else:
        asyncio.run(drain(chain.astream("q", config)))
    trace = collector.only()
    assert (trace.question, trace.answer, trace.status) == ("q", ANSWER, TraceStatus.OK)
    assert [(chunk.source_id, chunk.position) for chunk in trace.chunks] == [("row-1", 0), ("row-2", 1)]
    assert notes_of(trace)["failed_model_runs"] == ["ConnectionError: overloaded"]


def test_row_18_a_models_fallback_is_one_trace(collector: Collector) -> None:
    """Alternatives that a wrapper calls without saying so belong to its run; a loop's calls do not."""
    model = Failing(responses=[""]).with_fallbacks([says(ANSWER)])
    model.invoke("hi", collector.config())
    config = collector.config()
    step(lambda many: [make_chain().invoke(one, config) for one in many]).invoke(["a", "b"], config)
    first, *rest = collector.traces()
    assert (first.question, first.answer, notes_of(first)["model_runs"]) == ("hi", ANSWER, 2)
    assert [trace.question for trace in rest if trace.chunks] == ["a", "b"]


class Reply(BaseModel):
    """A structured answer."""

    answer: str
    sure: bool


TOOL_CALL = AIMessage(
    "",
    tool_calls=[{"name": "Reply", "args": {"answer": ANSWER, "sure": True}, "id": "1", "type": "tool_call"}],
)
STEPS: dict[str, tuple[str | AIMessage, Runnable[Any, Any], str]] = {
    "citations appended": (ANSWER, step(lambda m: f"{m.content}\n[1]"), f"{ANSWER}\n[1]"),
    "a word of it": (ANSWER, step(lambda m: m.content.split()[-1]), "2959."),
    "edited inside": (ANSWER, step(lambda m: m.content.replace("is", "was")), "The port was 2959."),
    "a key of its JSON": (json.dumps({"answer": ANSWER, "sure": True}), JsonOutputParser(), ANSWER),
    "escapes": (json.dumps({"answer": "„é“\n😀\tx"}, ensure_ascii=False), JsonOutputParser(), "„é“\n😀\tx"),
    "a structured answer": (TOOL_CALL, step(lambda m: Reply(**m.tool_calls[0]["args"])), ANSWER),
}


@pytest.mark.parametrize("kind", STEPS)
def test_row_19_shown_and_generated_text_are_kept_with_their_map(collector: Collector, kind: str) -> None:
    """When a later step changes the model's text, both are kept, and blocks tell which part is which."""
    said, after, shown = STEPS[kind]
    search: Runnable[str, Any] = NotesRetriever() | step(join)
    (search | says(said) | after).invoke("q", collector.config())
    trace = collector.only()
    assert trace.answer == shown
    assert trace.generated is not None
    blocks = notes_of(trace)["answer_map"]
    for at, source, length in blocks:
        assert trace.answer[at : at + length] == trace.generated[source : source + length]
    covered = sum(length for _, _, length in blocks)
    assert covered >= min(len(shown), len(trace.generated)) * 0.5
    assert "answering_run" not in notes_of(trace)


def test_row_19_a_tool_call_that_nobody_parses_is_the_answer(collector: Collector) -> None:
    """A chain that ends in a model with a structured answer shows its arguments."""
    (NotesRetriever() | step(join) | says(TOOL_CALL)).invoke("q", collector.config())
    assert json.loads(collector.only().answer) == {"answer": ANSWER, "sure": True}


words = st.text(st.sampled_from('ab "\\\n{}[1]é😀'), max_size=30)


@given(words, words, st.booleans())
@settings(max_examples=200, deadline=None)
def test_row_19_blocks_are_true_of_both_texts(answer: str, other: str, is_json: bool) -> None:
    """For any two texts, JSON or not, a block covers equal text on both sides, and blocks are disjoint."""
    generated = json.dumps({"x": other, "answer": answer}) if is_json else other + answer[:7] + other
    blocks = map_answer(answer, generated)
    for at, source, length in blocks:
        assert answer[at : at + length] == generated[source : source + length]
        assert length > 0
    assert all(first[0] + first[2] <= second[0] for first, second in itertools.pairwise(blocks))
    plain = [character for character in answer if character in "ab {}[1]"]
    if is_json and answer:
        assert sum(block[2] for block in blocks) >= len(plain) - 100  # of many blocks the longest are kept


def test_row_20_reasoning_is_not_the_answer(collector: Collector) -> None:
    """Of content blocks only text is answer; in a prompt, an image stands as a placeholder."""
    thought: list[Any] = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "thinking", "thinking": "so"},
    ]
    message = AIMessage([*thought, {"type": "text", "text": ANSWER, "citations": [1]}, " Indeed."])
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    said = AIMessage([*thought, {"type": "text", "text": "before"}])
    prompt = [said, HumanMessage([{"type": "text", "text": "what is "}, image])]
    says(message).invoke(prompt, collector.config())
    trace = collector.only()
    assert trace.answer == f"{ANSWER} Indeed."
    assert [message.text for message in trace.prompt] == ["before", "what is [image_url]"]
    BlameHandler().on_llm_new_token(["a", {"type": "text"}], run_id=uuid.uuid4())


class Several(FakeListChatModel):
    """A model that gives three candidates a call."""

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        said = [ANSWER, "another", "third"]
        return ChatResult(generations=[ChatGeneration(message=AIMessage(text)) for text in said])


def test_row_21_the_first_generation_counts(collector: Collector) -> None:
    """Of n candidates the first is the answer and the rest are counted; generate([a, b]) is two runs."""
    rag(Several(responses=[""])).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.answer, notes_of(trace)["ignored_generations"]) == (ANSWER, 2)
    Several(responses=[""]).generate([[HumanMessage("a")], [HumanMessage("b")]], **collector.config())
    assert [trace.question for trace in collector.traces()[1:]] == ["a", "b"]


def test_row_22_documents_are_kept_as_they_were_retrieved(collector: Collector) -> None:
    """A later step that edits text or metadata in place, at any depth, does not change the record."""
    found = [Document("Note 1.", metadata={"source": "a"}), Document("Note 2.", metadata={"tags": ["a"]})]

    class Fixed(BaseRetriever):
        def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
            return found

    def redact(documents: list[Document]) -> list[Document]:
        for document in documents:
            document.page_content = "[REDACTED]"
            document.metadata.setdefault("tags", []).append("gone")
            document.metadata["source"] = "gone"
        return documents

    make_chain(retriever=Fixed() | step(redact)).invoke("q", collector.config())
    trace = collector.only()
    assert [chunk.text for chunk in trace.chunks] == ["Note 1.", "Note 2."]
    assert [chunk.metadata for chunk in trace.chunks] == [{"source": "a"}, {"tags": ["a"]}]
    assert "[REDACTED]" in trace.prompt[0].text


@pytest.mark.parametrize("pieces", [1, 5])
def test_row_23_a_cut_answer_is_abandoned_with_both_texts(collector: Collector, pieces: int) -> None:
    """A stream that was left looks like success: a strict prefix of the model's text tells it."""
    for number, _ in enumerate(make_chain().stream("q", collector.config()), start=1):
        if number == pieces:
            break
    trace = collector.only()
    assert (trace.status, trace.error) == (TraceStatus.ABANDONED, None)
    assert (trace.answer, trace.generated) == (
        ANSWER[: pieces - 1],
        ANSWER,
    )  # LangChain forgets the last piece


# 24 to 29: what it holds and costs -------------------------------------------------------------------------


def start(runs: OpenRuns, parent: uuid.UUID | None = None) -> uuid.UUID:
    """Begin a run of these."""
    run_id = uuid.uuid4()
    runs.start(run_id, parent, object())
    return run_id


def evicted() -> int:
    """How many runs were given up so far."""
    return counters.snapshot().get("evicted_runs", 0)


def test_row_24_open_runs_are_bounded_by_count() -> None:
    """Of runs that never end the least recently active are given up, and counted."""
    runs, before, ids = OpenRuns(max_runs=10), evicted(), []
    for _ in range(30):
        ids.append(start(runs))
        for tree in runs.overdue():
            runs.seal(tree)
    assert len(runs) <= 11
    assert runs.find(ids[0]) is None
    assert runs.find(ids[-1]) is not None
    assert evicted() >= before + 19


def test_row_24_open_runs_are_bounded_by_bytes_and_age() -> None:
    """Held text and idle time are bounded, too; what has ended counts no more."""
    heavy, old = OpenRuns(max_bytes=1_000), OpenRuns(idle_seconds=0.0)
    large = heavy.find(start(heavy))
    assert large is not None
    heavy.hold(large, "x" * 2_000)
    assert heavy.overdue() == [large]
    assert (large.status, large.is_partial) == (TraceStatus.ABANDONED, True)
    heavy.end(large)
    fresh = heavy.find(start(heavy))
    assert fresh is not None
    heavy.hold(fresh, "x" * 500)
    assert heavy.overdue() == []
    heavy.seal(large)
    heavy.hold(large, "late text is not held")
    assert heavy.overdue() == []
    assert old.overdue() == [old.find(start(old))] or len(old.overdue()) == 1


def test_row_24_one_endless_root_is_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service loop inside one root run is given up as partial instead of growing for ever."""
    monkeypatch.setattr(open_runs, "_max_tree_runs", 60)
    config, before = collector.config(), evicted()

    def serve(text: str, config: RunnableConfig) -> int:
        return len([NotesRetriever().invoke(f"q{number}", config) for number in range(200)])

    step(serve).invoke("loop", config)
    assert evicted() == before + 1
    trace = collector.only()
    assert (trace.status, trace.partial_tree) == (TraceStatus.ABANDONED, True)
    assert 60 < len(notes_of(trace)["retrievers"]) + len(trace.chunks) < 200


def test_row_24_an_agents_old_prompts_are_let_go() -> None:
    """When one tree holds too much, the prompts of its early model runs go first."""
    runs = OpenRuns(max_tree_bytes=5_000)
    root = start(runs)
    tree = runs.find(root)
    assert tree is not None
    for number in range(5):
        prompt = (Message(role="human", text=f"{number}" * 2_000),)
        tree.models[number] = run_tree.ModelRun(prompt, None, None, False, messages=1)
        runs.hold(tree, prompt[0].text)
        assert runs.overdue(tree) == []
    assert [len(run.prompt) for run in tree.models.values()] == [0, 0, 0, 1, 1]


def test_row_25_late_events_of_a_finished_root_change_nothing(collector: Collector) -> None:
    """Runs still open at the root's end are closed; later ends, children and grandchildren leave no trace."""
    handler = collector.handler()
    root, model, late, later = (uuid.uuid4() for _ in range(4))
    handler.on_chain_start(None, "q", run_id=root)
    handler.on_chat_model_start(None, [[HumanMessage("q")]], run_id=model, parent_run_id=root)
    handler.on_chain_end("shown", run_id=root)
    trace = collector.only()  # after a second's grace
    assert (trace.answer, len(open_runs)) == ("shown", 0)
    handler.on_llm_error(RuntimeError(), run_id=model)
    handler.on_chain_start(None, "late", run_id=late, parent_run_id=root)
    handler.on_chat_model_start(None, [[HumanMessage("late")]], run_id=later, parent_run_id=late)
    handler.on_chain_end("late", run_id=late, parent_run_id=root)
    assert len(collector.traces()) == 1


def test_row_25_a_run_open_at_the_end_is_told_as_cancelled(collector: Collector) -> None:
    """A model run that never reports is in the notes as cancelled, beside the one that answered."""
    handler = collector.handler()
    root, stuck, model = (uuid.uuid4() for _ in range(3))
    handler.on_chain_start(None, "q", run_id=root)
    handler.on_chat_model_start(None, [[HumanMessage("a")]], run_id=stuck, parent_run_id=root)
    handler.on_chat_model_start(None, [[HumanMessage("q")]], run_id=model, parent_run_id=root)
    response = ChatResult(generations=[ChatGeneration(message=AIMessage("shown"))])
    handler.on_llm_end(type("R", (), {"generations": [response.generations]}), run_id=model)
    handler.on_chain_end("shown", run_id=root)
    attempts = notes_of(collector.only())["attempts"]
    assert [(entry["ended"], entry["answered"]) for entry in attempts] == [("cancelled", False), ("ok", True)]


class NoOpTracer(BaseTracer):
    """LangChain's run-tree tracer with nothing behind it: what every peer that derives from it costs."""

    def _persist_run(self, run: Run) -> None:
        pass


def test_row_26_it_costs_less_than_langchains_own_tracer(collector: Collector) -> None:
    """Added CPU of a chain run, writer's thread included, against BaseTracer's, taken in turns."""
    chain, mine = make_chain(), collector.handler()
    handlers: dict[str, list[BaseCallbackHandler]] = {"none": [], "tracer": [NoOpTracer()], "ours": [mine]}
    spent: dict[str, list[float]] = {name: [] for name in handlers}
    for _ in range(12):
        for name, given_ in handlers.items():
            began = time.process_time()
            for _ in range(15):
                chain.invoke("q", {"callbacks": list(given_)})
            collector.recorder.flush(10)
            spent[name].append(time.process_time() - began)
    none, tracer, ours = (min(spent[name]) for name in ("none", "tracer", "ours"))
    print(f"added: ours {(ours - none) / 15 * 1e3:.3f} ms, tracer {(tracer - none) / 15 * 1e3:.3f} ms a run")
    assert ours - none < tracer - none


def test_row_27_the_hosts_thread_neither_imports_nor_logs() -> None:
    """From the first event to the last, the host's own thread loads no module of ours and logs nothing."""
    body = """
import logging, sys, threading, time
from tests.capture import make_chain
import ragblame
chain = make_chain(); chain.invoke('warm')  # LangChain's own late imports
ragblame.attach()
host, seen = threading.get_ident(), []
def hook(event, arguments):
    if event == 'import' and threading.get_ident() == host:
        seen.append(arguments[0])
sys.addaudithook(hook)
logging.basicConfig(level=logging.DEBUG)
chain.invoke('q')
seen_by_host = list(seen)
print(seen_by_host)
"""
    done = run_apart(body, environment={"RAGBLAME_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"})
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_row_28_a_trace_is_bounded_field_by_field_and_as_a_whole() -> None:
    """Texts are cut at the field's and the trace's limit, with their true lengths; chunks by count."""
    limits = Limits(max_field=1_000, max_trace=3_000, max_chunks=3)
    made: list[Trace | None] = []
    with collecting() as collector:
        handler, root, search = collector.handler(), uuid.uuid4(), uuid.uuid4()
        handler.on_chain_start(None, "q" * 5_000, run_id=root)
        handler.on_retriever_start(None, "q", run_id=search, parent_run_id=root)
        handler.on_retriever_end([Document(f"{n}" * 900) for n in range(5)], run_id=search)
        tree = open_runs.find(root)
        assert tree is not None
        tree.status = TraceStatus.ERROR
        made.append(assemble(tree, limits))
        handler.on_chain_error(ValueError(), run_id=root)
    [trace] = made
    assert trace is not None
    assert (len(trace.question), trace.truncated) == (1_000, {"question": 5_000, "chunks": 5})
    kept = [(len(chunk.text), chunk.truncated_from) for chunk in trace.chunks]
    assert kept == [(900, None), (900, None), (199, 900)]  # what the trace had left


def test_row_29_it_is_made_anywhere() -> None:
    """With no event loop, in any thread, a handler is made and hears a chain; no driver is loaded by it."""
    body = """
import sys, threading, uuid, ragblame
from ragblame.plugin.run_tree import open_runs
made = []
thread = threading.Thread(target=lambda: made.append(ragblame.BlameHandler()))
thread.start(); thread.join(); ragblame.attach()
root = uuid.uuid4()
made[0].on_chain_start(None, 'q', run_id=root)
made[0].on_llm_start(None, ['q'], run_id=uuid.uuid4(), parent_run_id=root)
print(len(open_runs), [name for name in ('psycopg', 'pydantic_settings') if name in sys.modules])
"""
    done = run_apart(body)
    assert (done.returncode, done.stdout) == (0, "1 []\n"), done.stderr


# 30: sampling ----------------------------------------------------------------------------------------------


def test_row_30_the_id_decides_once_for_all() -> None:
    """About the share asked for, the same answer every time, and a higher rate only adds."""
    ids = [new_trace_id() for _ in range(4_000)]
    tenth = {trace_id for trace_id in ids if is_sampled(trace_id, 0.1)}
    assert 280 < len(tenth) < 520  # 6 standard deviations
    assert tenth <= {trace_id for trace_id in ids if is_sampled(trace_id, 0.5)}
    assert all(is_sampled(trace_id, 1.0) and not is_sampled(trace_id, 0.0) for trace_id in ids)


def test_row_30_all_of_an_answer_or_nothing_of_it(collector: Collector) -> None:
    """At rate 0.5 traces are whole or absent, say at what rate they came, and the rest are counted."""
    before = counters.snapshot().get("sampled_out", 0)
    for number in range(60):
        make_chain().invoke(f"q{number}", {"callbacks": [collector.handler(sample_rate=0.5)]})
    traces = collector.traces()
    for trace in traces:
        check(trace, trace.question)
        assert is_sampled(trace.id, 0.5)
        assert notes_of(trace)["sampling"] == {"rate": 0.5, "kept_for": "sampled"}
    assert 5 < len(traces) < 55
    assert counters.snapshot()["sampled_out"] - before == 60 - len(traces)


def fail(text: str) -> str:
    """A step that fails."""
    raise ZeroDivisionError


def remark(text: str) -> str:
    """A step that finds something worth a look."""
    assert ragblame.keep("low score")
    return text


@pytest.mark.parametrize(
    ("after", "config", "why"),
    [
        (fail, {}, "error"),
        (remark, {}, "low score"),
        (str, {"tags": ["ragblame:keep"]}, "tag ragblame:keep"),
    ],
)
def test_row_30_what_matters_is_kept_at_rate_nought(
    collector: Collector, after: Any, config: Any, why: str
) -> None:
    """Errors and what the host asks for are recorded at any rate, each saying why."""
    handler = collector.handler(sample_rate=0.0)
    make_chain().invoke("plain", {"callbacks": [handler]})
    config = {"callbacks": [handler], **config}
    try:
        (make_chain() | step(after)).invoke("q", config)
    except ZeroDivisionError:
        assert why == "error"
    trace = collector.only()
    assert trace.question == "q"
    assert notes_of(trace)["sampling"] == {"rate": 0.0, "kept_for": why}


def test_row_30_abandoned_and_cancelled_are_kept(collector: Collector) -> None:
    """What a user walked away from is recorded at any rate."""
    handler = collector.handler(sample_rate=0.0)
    for _ in make_chain().stream("left", {"callbacks": [handler]}):
        break

    search = make_chain(retriever=NotesRetriever(delay=5))

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(search.ainvoke("slow", {"callbacks": [handler]}), 0.05)

    asyncio.run(give_up())
    kept = [notes_of(trace)["sampling"]["kept_for"] for trace in collector.traces()]
    assert kept == ["abandoned", "cancelled"]


def test_row_30_the_rate_is_an_option_of_each_place(collector: Collector) -> None:
    """attach(sample_rate=) holds for its runs, a rate outside 0 to 1 is refused, keep() needs a run."""
    handler = ragblame.attach(sample_rate=0.0)
    handler.sink = collector.collected.append
    make_chain().invoke("q")
    assert collector.traces() == []
    ragblame.detach()
    with pytest.raises(InputError, match="from 0 to 1"):
        BlameHandler(sample_rate=50)
    with pytest.raises(InputError, match="from 0 to 1"):
        ragblame.attach(sample_rate=-1)
    assert ragblame.keep() is False


def test_row_30_the_setting_holds_where_nothing_is_said(database_url: str, data_dir: Path) -> None:
    """RAGBLAME_CAPTURE_SAMPLE_RATE=0 stores failures only."""
    body = "import ragblame\nfrom tests.capture import make_chain\nragblame.attach()\n"
    body += "make_chain().invoke('fine')\n"
    body += "try: (make_chain() | (lambda text: 1 / 0)).invoke('failed')\nexcept ZeroDivisionError: pass\n"
    environment = {
        "RAGBLAME_DATABASE_URL": database_url,
        "RAGBLAME_DATA_DIR": str(data_dir),
        "RAGBLAME_CAPTURE_SAMPLE_RATE": "0",
    }
    done = run_apart(body, environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT question FROM ragblame.trace").fetchall() == [("failed",)]


# 31 to 33: what belongs to a run ---------------------------------------------------------------------------


def test_row_31_our_own_work_is_not_traced(collector: Collector) -> None:
    """Inside suppress_capture nothing is heard; runs tagged ragblame:ignore are no trace and no answer."""
    config: Any = collector.config()
    ignored: Any = {**config, "tags": ["ragblame:ignore"]}
    with suppress_capture():
        make_chain().invoke("suppressed", config)
        asyncio.run(make_chain().ainvoke("suppressed", config))
    make_chain().invoke("ignored", ignored)
    says("ignored").invoke("a model as root", ignored)
    NotesRetriever().invoke("a retriever as root", ignored)

    def ask(question: str, config: RunnableConfig) -> str:
        text = make_chain().invoke(question, config)
        inner: Any = {**config, "tags": ["ragblame:ignore"]}
        says("A judge's words.").invoke("judge", inner)
        NotesRetriever().invoke("probe", inner)
        return text

    step(ask).invoke("q", config)
    trace = collector.only()
    check(trace, "q")
    assert notes_of(trace)["model_runs"] == 1


def test_row_32_raw_threads_keep_their_run(collector: Collector) -> None:
    """Searches in a pool or a thread belong to the step that started them, by propagate()."""
    retriever = NotesRetriever()

    def search(question: str) -> list[Document]:
        with ThreadPoolExecutor(2) as pool:
            carried = ragblame.propagate(pool)
            first = carried.submit(retriever.invoke, "one").result()
            mapped = list(carried.map(retriever.invoke, ["two", "three"]))
        found: list[Document] = []
        work = ragblame.propagate(lambda: found.extend(retriever.invoke("four")))
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [*first, *(document for part in mapped for document in part), *found]

    make_chain(retriever=step(search)).invoke("q", collector.config())
    trace = collector.only()
    queries = [entry["query"] for entry in notes_of(trace)["retrievers"]]
    assert sorted(queries) == ["four", "four", "one", "three", "two"]
    assert len(trace.chunks) == 10
    assert not trace.partial_tree


def test_row_32_propagate_leaves_other_processes_alone() -> None:
    """A pool of processes comes back as it is; a wrapped pool shuts down, and hands on results and errors."""
    with ProcessPoolExecutor(1) as processes:
        assert ragblame.propagate(processes) is processes
    with ragblame.propagate(ThreadPoolExecutor(1)) as pool:
        assert pool.submit(pow, 2, 5).result() == 32
        assert isinstance(pool.submit(int, "x").exception(), ValueError)
    with pytest.raises(RuntimeError):
        pool.submit(pow, 2, 5)


def test_row_32_a_chain_inside_a_tool_is_nested(collector: Collector) -> None:
    """A chain called in a tool or a function without a config belongs to the run around it."""

    @tool
    def ask(question: str) -> str:
        """Ask the notes."""
        return make_chain().invoke(question)

    (step(lambda text: {"question": text}) | ask).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.question, trace.answer, len(trace.chunks)) == ("q", ANSWER, 2)


def test_row_32_record_retrieval_joins_the_run(collector: Collector) -> None:
    """Own searches are told inside a step or right before the call, and are used once."""

    def search(question: str) -> str:
        ragblame.record_retrieval([Document("Inside.", id="in")], source_table="own.table", query="rewritten")
        return "Inside."

    inside = step(search) | FakeListChatModel(responses=[ANSWER])
    inside.invoke("one", collector.config())
    ragblame.record_retrieval([(Document("Before.", id="out"), 0.5)])
    FakeListChatModel(responses=[ANSWER]).invoke("two", collector.config())
    FakeListChatModel(responses=[ANSWER]).invoke("three", collector.config())
    first, second, third = collector.traces()
    assert [(chunk.source_id, chunk.source_table) for chunk in first.chunks] == [("in", "own.table")]
    assert first.query == "rewritten"
    assert [(chunk.source_id, chunk.score) for chunk in second.chunks] == [("out", 0.5)]
    assert third.chunks == ()


@pytest.mark.parametrize("form", ["content", "content_and_artifact"])
def test_row_33_an_agents_searches_are_chunks(collector: Collector, form: Any) -> None:
    """Two searches by a retrieval tool: chunks by run and rank, aligned in the prompt's tool messages."""
    look_up = create_retriever_tool(NotesRetriever(), "look_up", "Search.", response_format=form)

    def agent(messages: list[BaseMessage], config: RunnableConfig) -> dict[str, list[BaseMessage]]:
        for number in range(2):
            call = {"name": "look_up", "args": {"query": f"port {number}"}, "id": str(number)}
            request = AIMessage("", tool_calls=[call])
            messages = [*messages, says(request).invoke(messages, config)]
            messages.append(look_up.invoke({**call, "type": "tool_call"}, config))
        return {"messages": [*messages, says(ANSWER).invoke(messages, config)]}

    step(agent).invoke([SystemMessage("be brief"), HumanMessage("Which port?")], collector.config())
    trace = collector.only()
    assert (trace.question, trace.answer, trace.query) == ("Which port?", ANSWER, "port 0")
    assert [chunk.text for chunk in trace.chunks] == [
        f"Note {rank} about port {number}." for number in (0, 1) for rank in (1, 2)
    ]
    assert len({(chunk.retriever_run, chunk.rank) for chunk in trace.chunks}) == 4
    assert [found.message for found in align_chunks(trace.chunks, trace.prompt)] == [3, 3, 5, 5]


# 34: redaction (its rules are tested in test_redaction.py) -------------------------------------------------


def test_row_34_secrets_are_masked_with_their_length(collector: Collector) -> None:
    """A key in a document is masked in chunk, prompt, answer and question; every offset stays what it was."""
    key = "AKIA" + "QWERTYUIOPASDFGH"
    text = f"The deploy key is {key}, in Oslo."
    search = step(lambda question: [Document(text)])
    make_chain(model=says(f"It is {key}."), retriever=search).invoke(f"Is {key} it?", collector.config())
    trace = collector.only()
    kept = [trace.question, trace.answer, trace.chunks[0].text, *(message.text for message in trace.prompt)]
    assert not any(key in part for part in kept)
    assert len(trace.chunks[0].text) == len(text)
    [found] = align_chunks(trace.chunks, trace.prompt)
    assert (found.state, found.start, found.end) == (AlignmentState.EXACT, 13, 13 + len(text))


# 35 to 40: clocks, ids, processes, neighbours --------------------------------------------------------------


def test_row_35_a_stepped_clock_does_not_bend_durations(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock is read once, at the root's start: set back an hour meanwhile, nothing goes wrong."""
    real, reads = time.time_ns, []

    def stepped() -> int:
        reads.append(1)
        return real() - 3_600_000_000_000 * (len(reads) > 1)

    def nap(text: str) -> str:
        time.sleep(0.02)
        return text

    chain = step(nap) | make_chain()
    with monkeypatch.context() as patch:
        patch.setattr(
            run_tree, "new_trace_id", lambda: new_trace_id(datetime.fromtimestamp(stepped() / 1e9, UTC))
        )
        chain.invoke("q", collector.config())
    trace = collector.only()
    assert len(reads) == 1
    assert 20 < trace.duration_ms < 10_000
    assert abs(trace.started_at - datetime.now(UTC)) < timedelta(seconds=60)
    assert trace.started_at.timestamp() * 1e3 == pytest.approx(trace.id.int >> 80, abs=1)


def test_row_36_a_reused_run_id_does_not_merge_answers(collector: Collector) -> None:
    """Two questions under one caller-given run id, one after the other, are two traces."""
    run_id, handler = uuid.uuid4(), collector.handler()
    for question in ("first", "second"):
        make_chain().invoke(question, {"callbacks": [handler], "run_id": run_id})
    first, second = collector.traces()
    check(first, "first")
    check(second, "second")
    assert first.root_run_id == second.root_run_id == run_id
    assert first.id != second.id


@pytest.mark.parametrize("handlers", ["shared", "one each"])
def test_row_36_one_id_for_two_runs_at_once_is_refused(collector: Collector, handlers: str) -> None:
    """Running at once under one id, two answers cannot be told apart: neither is recorded, it is counted."""
    run_id, shared = uuid.uuid4(), collector.handler()
    before = counters.snapshot().get("colliding_runs", 0)
    chain = make_chain(retriever=NotesRetriever(delay=0.05))

    async def ask(question: str) -> None:
        handler = shared if handlers == "shared" else collector.handler()
        await chain.ainvoke(question, {"callbacks": [handler], "run_id": run_id})

    async def both() -> None:
        await asyncio.gather(ask("first"), ask("second"))

    asyncio.run(both())
    assert counters.snapshot()["colliding_runs"] == before + 1
    assert collector.traces() == []
    make_chain().invoke("third", {"callbacks": [shared], "run_id": run_id})
    check(collector.only(), "third")


def test_row_37_a_chain_may_run_while_the_interpreter_ends(data_dir: Path) -> None:
    """Chains in exit handlers, before and after our own, neither raise nor hang; earlier traces are safe."""
    body = """
import atexit
from langchain_core.language_models import FakeListChatModel
from tests.capture import ANSWER, NotesRetriever, join
chain = NotesRetriever() | join | FakeListChatModel(responses=[ANSWER])  # no pool: those are shut already
atexit.register(lambda: print(chain.invoke('after ours').content))
import ragblame
ragblame.attach()
chain.invoke('before')
atexit.register(lambda: print(chain.invoke('before ours').content))
"""
    began = time.monotonic()
    environment = {
        "RAGBLAME_DATABASE_URL": "postgresql://x@127.0.0.1:1/x",
        "RAGBLAME_DATA_DIR": str(data_dir),
    }
    done = run_apart(body, environment=environment)
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n" * 2), done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 20
    kept = b"".join(path.read_bytes() for path in data_dir.rglob("*") if path.is_file())
    assert b'"before"' in kept
    assert b'"before ours"' in kept


def test_row_37_no_thread_no_harm(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thread cannot be started any more, the answer comes all the same, and close() spools."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with installed(settings_for("postgresql://x@127.0.0.1:1/x", data_dir)) as recorder:
        chain = NotesRetriever() | step(join) | FakeListChatModel(responses=[ANSWER])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            assert chain.invoke("q", {"callbacks": [BlameHandler()]}).content == ANSWER
            recorder.close(0.1)
    assert inspect_spool(data_dir / "spool").waiting == 1
    for tree in list(open_runs._roots.values()):  # the process would be gone
        open_runs.seal(tree)


def test_row_38_preforked_workers_record_on_their_own(database_url: str, data_dir: Path) -> None:
    """A master that loads the chain and forks workers, as gunicorn and Celery do: each writes its rows."""
    body = """
import os, ragblame
from tests.capture import make_chain
ragblame.attach()
chain = make_chain()
chain.invoke('preloaded')
workers = []
for number in range(3):
    worker = os.fork()
    if worker == 0:
        for request in range(5):
            chain.invoke(f'{number}/{request}')
        os._exit(0 if ragblame.flush(20) else 3)
    workers.append(worker)
print([os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers], ragblame.flush(20))
"""
    environment = {"RAGBLAME_DATABASE_URL": database_url, "RAGBLAME_DATA_DIR": str(data_dir)}
    done = run_apart(body, environment=environment)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[0, 0, 0] True\n")
    with psycopg.connect(database_url) as conn:
        row = conn.execute("SELECT count(*), count(DISTINCT question) FROM ragblame.trace").fetchone()
    assert row == (16, 16)


def test_row_39_unknown_arguments_and_events_are_no_error(collector: Collector) -> None:
    """Every event takes arguments of later versions; only named events exist, so a slip still shows."""
    handler, run_id = collector.handler(), uuid.uuid4()
    for name, method in inspect.getmembers(BlameHandler, inspect.isfunction):
        if name.startswith("on_"):
            kinds = [parameter.kind for parameter in inspect.signature(method).parameters.values()]
            assert inspect.Parameter.VAR_KEYWORD in kinds, name
    handler.on_chain_start(None, "q", run_id=run_id, from_the_future=object())
    handler.on_chain_end(ANSWER, run_id=run_id, from_the_future=object())
    for name in ("on_interrupt", "on_resume", "on_stream_event"):
        assert getattr(handler, name)("anything", more=1) is None
    with pytest.raises(AttributeError):
        handler.on_chain_strat  # type: ignore[attr-defined] # noqa: B018
    assert collector.only().answer == ANSWER


def test_row_40_other_tracers_beside_ours_change_nothing(data_dir: Path) -> None:
    """LangSmith switched on and unreachable, debug and console handlers: the same trace, no exception."""
    body = """
import json, sys
from langchain_core.globals import set_debug, set_verbose
from langchain_core.tracers import ConsoleCallbackHandler
from langchain_core.callbacks import StdOutCallbackHandler
from tests.capture import check, collecting, make_chain
set_debug(True); set_verbose(True)
with collecting() as collector:
    config = {'callbacks': [StdOutCallbackHandler(), collector.handler(), ConsoleCallbackHandler()]}
    make_chain().invoke('q', config)
    check(collector.only(), 'q')
sys.stdout.write('\\nwhole\\n'); sys.stdout.flush()
import os; os._exit(0)  # LangSmith would wait for its server
"""
    environment = {
        "LANGSMITH_TRACING": "true",
        "LANGSMITH_ENDPOINT": "http://127.0.0.1:9",
        "LANGSMITH_API_KEY": "none",
        "RAGBLAME_DATA_DIR": str(data_dir),
    }
    done = run_apart(body, environment=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\nwhole\n")


def test_every_row_has_its_line_and_its_test() -> None:
    """docs/capture.md lists all 40 rows, and a test of each begins with the name it gives."""
    lines = re.findall(r"^\| (P?\d+) \|.*\| `(\w+)` \|$", (ROOT / "docs/capture.md").read_text("utf-8"), re.M)
    expected = {f"P{row}": f"test_p{row:02}" for row in range(1, 16)}
    expected |= {str(row): f"test_row_{row}" for row in range(16, 41)}
    assert dict(lines) == expected
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in expected.values() if not re.search(rf"^def {name}_", tests, re.M)] == []
