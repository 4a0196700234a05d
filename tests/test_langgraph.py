"""Real LangGraph graphs become traces: pauses, resumption, fan-out, subgraphs, agents with a search tool."""

import asyncio
import operator
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.tools import create_retriever_tool, tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt

import ragblame
from ragblame.attribution.alignment import align_chunks
from ragblame.plugin.run_tree import open_runs
from ragblame.records import TraceStatus
from tests.capture import ANSWER, Collector, NotesRetriever, collecting, drain, join, notes_of

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the agent moved to another package; the graph it builds is the same
    from langgraph.prebuilt import create_react_agent

pytestmark = pytest.mark.filterwarnings("ignore:create_react_agent has been moved")


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Traces go to the test; nothing of ours may have failed at the end, and no run may be left open."""
    with collecting() as collector:
        yield collector


class State(TypedDict, total=False):
    """What the steps of a retrieval graph hand on."""

    question: str
    documents: Annotated[list[Document], operator.add]
    answer: str


def retrieve(state: State) -> State:
    """A node that searches."""
    return {"documents": NotesRetriever().invoke(state["question"])}


def generate(state: State) -> State:
    """A node that answers from what was found."""
    model = FakeListChatModel(responses=[ANSWER])
    return {"answer": str(model.invoke(f"{join(state['documents'])}\n\n{state['question']}").content)}


def approve(state: State) -> State:
    """A node that asks a person."""
    return {"answer": f"{state['answer']} {interrupt('May I say so?')}"}


def graph_of(*nodes: Any, **options: Any) -> Any:
    """These nodes one after the other."""
    graph: Any = StateGraph(State)
    before = START
    for node in nodes:
        name = getattr(node, "__name__", "subgraph")
        graph.add_node(name, node)
        graph.add_edge(before, name)
        before = name
    graph.add_edge(before, END)
    return graph.compile(**options)


def check_answered(collector: Collector, question: str = "q") -> None:
    """One complete trace."""
    trace = collector.only()
    assert (trace.question, trace.answer, trace.status) == (question, ANSWER, TraceStatus.OK)
    assert [chunk.source_id for chunk in trace.chunks] == ["row-1", "row-2"]
    assert [found.start for found in align_chunks(trace.chunks, trace.prompt)] == [0, 16 + len(question)]
    assert not trace.partial_tree


@pytest.mark.parametrize("call", ["invoke", "stream", "ainvoke", "astream", "messages"])
def test_a_graph_is_one_trace(collector: Collector, call: str) -> None:
    """However it is called, a graph that retrieves and answers is one whole trace."""
    graph, config = graph_of(retrieve, generate), collector.config()
    if call == "stream":
        list(graph.stream({"question": "q"}, config))
    elif call == "invoke":
        graph.invoke({"question": "q"}, config)
    elif call == "ainvoke":
        asyncio.run(graph.ainvoke({"question": "q"}, config))
    else:
        mode = "messages" if call == "messages" else "updates"
        asyncio.run(drain(graph.astream({"question": "q"}, config, stream_mode=mode)))
    check_answered(collector)


def test_attach_sees_graphs(collector: Collector) -> None:
    """With attach() nothing is handed to the graph."""
    ragblame.attach().sink = collector.collected.append
    graph_of(retrieve, generate).invoke({"question": "q"})
    check_answered(collector)


@pytest.mark.parametrize("is_async", [False, True])
def test_p12_a_pause_is_interrupted_and_its_resumption_the_same_session(
    collector: Collector, is_async: bool
) -> None:
    """A graph that asks a person is interrupted, not failed; the resumed run is linked by its thread."""
    graph = graph_of(retrieve, approve_question, generate, checkpointer=InMemorySaver())
    config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
    entries: list[Any] = [{"question": "q"}, Command(resume="yes")]
    for entry in entries:
        if is_async:
            asyncio.run(graph.ainvoke(entry, config))
        else:
            graph.invoke(entry, config)
    first, second = collector.traces()
    assert [first.status, second.status] == [TraceStatus.INTERRUPTED, TraceStatus.OK]
    assert first.session_id == second.session_id == "t-1"
    assert first.error is None
    assert [trace.question for trace in (first, second)] == ["q", "q"]
    assert [len(trace.chunks) for trace in (first, second)] == [2, 2]  # the second from the graph's state
    assert (first.answer, second.answer) == ("", ANSWER)


def approve_question(state: State) -> State:
    """A node that asks a person before anything is answered."""
    assert interrupt("May I answer this?") == "yes"
    return {}


def test_p12_a_pause_after_the_answer_keeps_it(collector: Collector) -> None:
    """The draft that waits for approval is the interrupted trace's answer."""
    graph = graph_of(retrieve, generate, approve, checkpointer=InMemorySaver())
    config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
    graph.invoke({"question": "q"}, config)
    graph.invoke(Command(resume="(approved)"), config)
    first, second = collector.traces()
    assert (first.status, first.answer) == (TraceStatus.INTERRUPTED, ANSWER)
    assert (second.status, second.answer) == (TraceStatus.OK, f"{ANSWER} (approved)")


def test_p12_a_pause_that_is_caught_is_none(collector: Collector) -> None:
    """A graph called as a function inside another run may pause; the run around it goes on, and is ok."""
    inner = graph_of(approve, checkpointer=InMemorySaver())

    def consult(state: State) -> State:
        paused = inner.invoke({"answer": "?"}, {"configurable": {"thread_id": "inner"}})
        assert "__interrupt__" in paused
        return {}

    graph_of(consult, retrieve, generate).invoke({"question": "q"}, collector.config())
    check_answered(collector)


@pytest.mark.parametrize("how", ["interrupt_before", "interrupt_after"])
@pytest.mark.parametrize("call", ["invoke", "ainvoke", "stream"])
def test_p12_a_breakpoint_is_a_pause(collector: Collector, how: str, call: str) -> None:
    """A graph compiled with a breakpoint pauses there without a word from any step, and is resumed as ok."""
    options = {how: ["generate" if how == "interrupt_before" else "retrieve"]}
    graph = graph_of(retrieve, generate, checkpointer=InMemorySaver(), **options)
    config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
    entries: list[Any] = [{"question": "q"}, None]
    for entry in entries:
        if call == "ainvoke":
            asyncio.run(graph.ainvoke(entry, config))
        elif call == "invoke":
            graph.invoke(entry, config)
        else:
            list(graph.stream(entry, config))
    first, second = collector.traces()
    assert [first.status, second.status] == [TraceStatus.INTERRUPTED, TraceStatus.OK]
    assert (first.answer, second.answer) == ("", ANSWER)
    assert first.session_id == second.session_id == "t-1"


def test_p12_a_breakpoint_of_an_inner_graph_is_none(collector: Collector) -> None:
    """A graph called as a function pauses by itself; the run around it goes on, and is ok."""
    inner = graph_of(retrieve, generate, checkpointer=InMemorySaver(), interrupt_before=["generate"])

    def consult(state: State) -> State:
        inner.invoke({"question": "?"}, {"configurable": {"thread_id": "inner"}})
        return {}

    graph_of(consult, retrieve, generate).invoke({"question": "q"}, collector.config())
    assert collector.only().status is TraceStatus.OK


def test_p12_a_pause_in_a_subgraph_pauses_the_graph(collector: Collector) -> None:
    """A subgraph that asks a person interrupts the whole."""
    inner = graph_of(retrieve, generate, approve)
    graph = graph_of(inner, checkpointer=InMemorySaver())
    config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
    graph.invoke({"question": "q"}, config)
    assert collector.only().status is TraceStatus.INTERRUPTED


def test_a_fan_out_keeps_every_search(collector: Collector) -> None:
    """Send starts three searches side by side: all chunks by run and rank, all in the prompt."""
    graph: Any = StateGraph(State)
    graph.add_node("retrieve", retrieve)
    graph.add_node("generate", generate)
    graph.add_conditional_edges(
        START, lambda state: [Send("retrieve", {"question": f"part {n}"}) for n in range(3)], ["retrieve"]
    )
    graph.add_edge("retrieve", "generate")
    for _ in range(3):
        graph.compile().invoke({"question": "q"}, collector.config())
    for trace in collector.traces():
        assert (trace.question, trace.answer) == ("q", ANSWER)
        assert [entry["query"] for entry in notes_of(trace)["retrievers"]] == ["part 0", "part 1", "part 2"]
        assert len({(chunk.retriever_run, chunk.rank) for chunk in trace.chunks}) == 6
        assert all(found.start is not None for found in align_chunks(trace.chunks, trace.prompt))


def test_a_subgraph_belongs_to_its_graph(collector: Collector) -> None:
    """A graph as a node of another is no trace of its own."""
    graph_of(graph_of(retrieve), generate).invoke({"question": "q"}, collector.config())
    check_answered(collector)


def test_a_parents_steering_is_no_ending(collector: Collector) -> None:
    """A subgraph that hands over to a node of the graph around it (Command.PARENT) ends as ok."""

    def hand_over(state: State) -> Any:
        return Command(goto="generate", graph=Command.PARENT)

    outer: Any = StateGraph(State)
    inner: Any = StateGraph(State)
    inner.add_node("hand_over", hand_over)
    inner.add_edge(START, "hand_over")
    outer.add_node("retrieve", retrieve)
    outer.add_node("inner", inner.compile())
    outer.add_node("generate", generate)
    outer.add_edge(START, "retrieve")
    outer.add_edge("retrieve", "inner")
    outer.compile().invoke({"question": "q"}, collector.config())
    check_answered(collector)


class Scripted(GenericFakeChatModel):
    """A model that follows a script of tool calls and answers."""

    def bind_tools(self, tools: Any, **kwargs: Any) -> Any:
        """It knows its tools already."""
        return self


def searching(*queries: str, answer: str = ANSWER) -> Scripted:
    """A model that searches for these one after the other, then answers."""
    calls = [
        AIMessage(
            "", tool_calls=[{"name": "look_up", "args": {"query": query}, "id": query, "type": "tool_call"}]
        )
        for query in queries
    ]
    return Scripted(messages=iter([*calls, AIMessage(answer)]))


@pytest.mark.parametrize("form", ["content", "content_and_artifact"])
def test_row_33_an_agent_with_a_retrieval_tool(collector: Collector, form: Any) -> None:
    """The agent's question and last words, the chunks of both searches, found in the tool messages."""
    look_up = create_retriever_tool(NotesRetriever(), "look_up", "Search.", response_format=form)
    agent = create_react_agent(searching("port", "host"), [look_up])
    agent.invoke({"messages": [("user", "Which port?")]}, collector.config())
    trace = collector.only()
    assert (trace.question, trace.answer, trace.generated) == ("Which port?", ANSWER, None)
    assert [chunk.text for chunk in trace.chunks] == [
        f"Note {rank} about {query}." for query in ("port", "host") for rank in (1, 2)
    ]
    assert [found.message for found in align_chunks(trace.chunks, trace.prompt)] == [2, 2, 4, 4]
    assert [entry["answered"] for entry in notes_of(trace)["attempts"]] == [False, False, True]


def test_an_agents_own_search_function(collector: Collector) -> None:
    """A tool that is no retriever, but returns its documents as artifact, is a search with its chunks."""

    @tool(response_format="content_and_artifact")
    def look_up(query: str) -> tuple[str, list[Document]]:
        """Search."""
        return f"Row about {query}.", [Document(f"Row about {query}.", id=query)]

    agent = create_react_agent(searching("port", "host"), [look_up])
    asyncio.run(agent.ainvoke({"messages": [("user", "Which port?")]}, collector.config()))
    trace = collector.only()
    assert [(chunk.source_id, chunk.rank) for chunk in trace.chunks] == [("port", 1), ("host", 1)]
    assert [entry["name"] for entry in notes_of(trace)["retrievers"]] == ["look_up", "look_up"]


def test_a_conversation_is_one_session_of_several_answers(collector: Collector) -> None:
    """Each turn of a thread is a trace of its own question and answer, though the state holds them all."""
    look_up = create_retriever_tool(NotesRetriever(), "look_up", "Search.")
    model = Scripted(
        messages=iter([*searching("port").messages, *searching("host", answer="The host is Oslo.").messages])
    )
    agent = create_react_agent(model, [look_up], checkpointer=InMemorySaver())
    for question in ("Which port?", "Which host?"):
        config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
        agent.invoke({"messages": [("user", question)]}, config)
    first, second = collector.traces()
    assert (first.question, first.answer) == ("Which port?", ANSWER)
    assert (second.question, second.answer) == ("Which host?", "The host is Oslo.")
    assert [chunk.text for chunk in second.chunks] == ["Note 1 about host.", "Note 2 about host."]
    assert first.session_id == second.session_id == "t-1"


def test_the_last_words_of_the_state_are_the_answer(collector: Collector) -> None:
    """What a node without a model makes of the answer was shown; what the model wrote is kept beside it."""

    def polish(state: Any) -> Any:
        return {"messages": [AIMessage(f"{state['messages'][-1].content} Bye.")]}

    look_up = create_retriever_tool(NotesRetriever(), "look_up", "Search.")
    graph: Any = StateGraph(MessagesState)
    graph.add_node("agent", create_react_agent(searching("port"), [look_up]))
    graph.add_node("polish", polish)
    graph.add_edge(START, "agent")
    graph.add_edge("agent", "polish")
    graph.compile().invoke({"messages": [("user", "Which port?")]}, collector.config())
    trace = collector.only()
    assert (trace.answer, trace.generated) == (f"{ANSWER} Bye.", ANSWER)


@pytest.mark.parametrize("place", ["model", "tool"])
def test_a_pause_before_the_answer_has_none_yet(collector: Collector, place: str) -> None:
    """Stopped before its model or its tool: what an agent said to an earlier question is not the answer."""

    @tool
    def look_up(query: str) -> str:
        """Search, if a person agrees."""
        return str(interrupt(query))

    def ask_first(state: Any) -> Any:
        if place == "model" and len(state["messages"]) > 1:
            interrupt("May I answer?")
        return {}

    model = Scripted(messages=iter([AIMessage("An earlier answer."), *searching("port").messages]))
    graph: Any = StateGraph(MessagesState)
    graph.add_node("ask_first", ask_first)
    graph.add_node("agent", create_react_agent(model, [look_up]))
    graph.add_edge(START, "ask_first")
    graph.add_edge("ask_first", "agent")
    graph = graph.compile(checkpointer=InMemorySaver())
    config: Any = {**collector.config(), "configurable": {"thread_id": "t-1"}}
    for question in ("Hello?", "Which port?"):
        graph.invoke({"messages": [("user", question)]}, config)
    _, second = collector.traces()
    assert (second.question, second.answer, second.generated) == ("Which port?", "", None)
    assert second.status is TraceStatus.INTERRUPTED


@pytest.mark.parametrize("how", ["break", "cancel", "fail"])
def test_p11_a_graph_that_is_left(collector: Collector, how: str) -> None:
    """Leaving a graph's stream, cancelling it, or a failing node: one trace with that status."""

    def fail(state: State) -> State:
        raise ZeroDivisionError("by nought")

    async def slow(state: State) -> State:
        await asyncio.sleep(5)
        return {}

    async def give_up(graph: Any) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(graph.ainvoke({"question": "q"}, collector.config()), 0.2)

    expected = TraceStatus.ABANDONED
    if how == "break":
        for _ in graph_of(retrieve, generate).stream({"question": "q"}, collector.config()):
            break
    elif how == "cancel":
        asyncio.run(give_up(graph_of(retrieve, slow, generate)))
        expected = TraceStatus.CANCELLED
    else:
        with pytest.raises(ZeroDivisionError):
            graph_of(retrieve, fail).invoke({"question": "q"}, collector.config())
        expected = TraceStatus.ERROR
    trace = collector.only()
    assert (trace.status, trace.question, len(trace.chunks)) == (expected, "q", 2)
    assert len(open_runs) == 0


def test_the_product_does_not_need_langgraph() -> None:
    """Capturing a chain loads no module of LangGraph."""
    script = (
        "import sys\nsys.modules['langgraph'] = None\n"
        "from tests.capture import check, collecting, make_chain\n"
        "with collecting() as collector:\n"
        "    make_chain().invoke('q', collector.config()); check(collector.only(), 'q')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
