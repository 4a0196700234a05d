"""What the callback adds to one run of a retrieval chain, beside a handler and a tracer that do nothing.

CPU seconds of the whole process (our writer thread included, PostgreSQL replaced by a counting sink, so that
only capture is compared), on LangChain own parts: a retriever, a prompt, a fake chat model, a parser.
Run: python benchmarks/capture_overhead.py [--json]
"""

import time
from collections.abc import Callable
from typing import Any

from evidence import bar, interleaved, report, spread
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run

from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.recorder import flush

RUNS = 50  # chain runs per timing
REPEATS = 15
CHUNKS = 8
CHUNK_TEXT = "The port of the Kestrel gateway is 2959. It runs in Oslo. " * 10


class FixedRetriever(BaseRetriever):
    """Returns the same eight chunks with an identity."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [Document(id=str(index), page_content=f"{index} {CHUNK_TEXT}") for index in range(CHUNKS)]


class NoOpTracer(BaseTracer):
    """LangChain's run-tree tracer with nothing behind it: the floor of every peer that derives from it."""

    def _persist_run(self, run: Run) -> None:
        pass


def chain() -> Runnable[str, str]:
    """Retriever | prompt | model | parser, fifteen runs as create_retrieval_chain makes them."""
    join = RunnableLambda(_join)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from:\n{context}"), ("human", "{question}")]
    )
    answer = prompt | FakeListChatModel(responses=["The port is 2959."]) | StrOutputParser()
    retrieval: Any = {"context": FixedRetriever() | join, "question": RunnablePassthrough()}
    wrapped: Runnable[str, str] = RunnableLambda(lambda text: str(text).strip()) | retrieval | answer
    return wrapped


def _join(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def timed(subject: Runnable[str, str], handlers: list[BaseCallbackHandler]) -> Callable[[], float]:
    """CPU milliseconds of one chain run with these handlers, over RUNS runs."""

    def run() -> float:
        before = time.process_time()
        for index in range(RUNS):
            subject.invoke(f"Which port? {index}", config={"callbacks": list(handlers)})
        flush(timeout=60)  # what our writer thread does belongs to our bill
        return (time.process_time() - before) * 1000 / RUNS

    return run


def main() -> None:
    """Measure and report."""
    recorded: list[object] = []
    subject = chain()
    costs = interleaved(
        {
            "no handler": timed(subject, []),
            "no-op handler": timed(subject, [BaseCallbackHandler()]),
            "no-op tracer (langchain BaseTracer)": timed(subject, [NoOpTracer()]),
            "ragblame": timed(subject, [BlameHandler(app="benchmark", sink=recorded.append)]),
        },
        REPEATS,
    )
    flush(timeout=60)
    if len(recorded) != RUNS * (REPEATS + 1):
        raise SystemExit(
            f"only {len(recorded)} of {RUNS * (REPEATS + 1)} runs were captured: nothing to compare"
        )
    floor = spread(costs["no handler"])[0]
    rows = []
    for name, values in costs.items():
        middle, low, high = spread(values)
        rows.append(
            {
                "handler": name,
                "CPU ms a run": middle,
                "quartiles": f"{low:.2f}–{high:.2f}",
                "added ms": middle - floor,
            }
        )
    added = {row["handler"]: float(str(row["added ms"])) for row in rows}
    report(
        "capture overhead",
        rows,
        [
            bar("added CPU ms a run", added["ragblame"], "<=", 1.0),
            bar(
                "added, against the no-op tracer",
                added["ragblame"] / max(added["no-op tracer (langchain BaseTracer)"], 1e-9),
                "<=",
                0.5,
            ),
        ],
    )


if __name__ == "__main__":
    main()
