"""One process of the fault soak: a host that answers questions with a real chain, captured or not.

It measures the chain alone, from ``invoke`` to the answer, and how much of that was spent inside our
callbacks, waits for the interpreter included. A captured one keeps two files besides: the
ledger, with the id of every trace that the recorder declared safe (committed by PostgreSQL or synced to the
spool), appended and fsynced only after that; and the questions that were answered. Commands come on standard
input, a line each: ``clock SECONDS`` sets this process's clock so far off; the end of input ends it.
Run by fault_soak.py: python benchmarks/soak_client.py FOLDER NAME RATE [--control]
"""

import importlib
import itertools
import json
import logging
import os
import random
import resource
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda
from zipf_corpus import ZipfCorpus

SEARCH_SECONDS: Final = 0.002  # the chain waits so long for its search and for its model, as real ones do
MODEL_SECONDS: Final = 0.005
THREADS: Final = 4
ANSWER: Final = "The port of the Kestrel gateway is 2959, and it runs in Oslo. " * 5
_pick: Final = random.Random()  # another draw in every host


class ZipfRetriever(BaseRetriever):
    """Chunks of about 1 KB, of which few are popular."""

    corpus: ZipfCorpus

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        time.sleep(SEARCH_SECONDS)
        return [
            Document(
                id=str(index),
                page_content=self.corpus.texts[index],
                metadata={"score": 0.5, "source": f"notes/{index}.md"},
            )
            for index in self.corpus.search(_pick)
        ]


class WaitingModel(FakeListChatModel):
    """A model that takes a moment."""

    def _call(self, *args: Any, **kwargs: Any) -> str:
        time.sleep(MODEL_SECONDS)
        return super()._call(*args, **kwargs)


def make_chain() -> Runnable[str, str]:
    """A function that searches, and asks prompt | model | parser: as light as a real chain can be."""
    retriever = ZipfRetriever(corpus=ZipfCorpus(random.Random(5)))
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from:\n{context}"), ("human", "{question}")]
    )
    model = prompt | WaitingModel(responses=[ANSWER]) | StrOutputParser()

    def answer(question: str) -> str:
        context = "\n\n".join(document.page_content for document in retriever.invoke(question))
        return model.invoke({"context": context, "question": question})

    return RunnableLambda(answer)


class Ledger:
    """The ids of safe traces, on disk before anybody counts on them."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, ids: Sequence[UUID]) -> None:
        """Append 16 bytes an id and sync."""
        os.write(self._file, b"".join(trace_id.bytes for trace_id in ids))
        os.fsync(self._file)


class Complaints(logging.Handler):
    """Counts what LangChain says about a callback that raised: it swallows those."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """One more."""
        self.count += 1


class Clock:
    """This process's wall clock, to be set wrong; monotonic clocks go on, as they do on a real machine."""

    def __init__(self) -> None:
        self.offset = 0.0
        true_time, true_ns = time.time, time.time_ns
        time.time = lambda: true_time() + self.offset
        time.time_ns = lambda: true_ns() + int(self.offset * 1e9)
        clock = self

        class SteppedDatetime(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None) -> "SteppedDatetime":
                return super().now(tz) + timedelta(seconds=clock.offset)

        for name in ("ragblame.plugin.run_tree", "ragblame.plugin.handler", "ragblame.traces"):
            module = importlib.import_module(name)
            if getattr(module, "datetime", None) is datetime:
                module.datetime = SteppedDatetime  # type: ignore[attr-defined]


_inside: ContextVar[list[float] | None] = ContextVar("seconds in our callbacks", default=None)  # of an answer


def watch_callbacks(handler: type) -> None:
    """Have every callback of the handler note how long it took, in whatever thread LangChain calls it."""

    def watched(callback: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            began = time.monotonic()
            callback(*args, **kwargs)
            noted = _inside.get()
            if noted is not None:
                noted.append(time.monotonic() - began)

        return call

    for name, callback in list(vars(handler).items()):
        if name.startswith("on_"):
            setattr(handler, name, watched(callback))


class Client:
    """Answers at a steady rate in a few threads, and writes down how long each answer took."""

    def __init__(self, folder: Path, name: str, rate: float) -> None:
        self.folder, self.name, self.period = folder, name, THREADS / rate
        self.chain = make_chain()
        self.done = threading.Event()
        self.samples: list[float] = []  # monotonic start, seconds, seconds inside callbacks, in turn
        self.answered: list[str] = []
        self.failures = 0  # exceptions that reached the caller, or a wrong answer

    def run(self) -> None:
        """Until standard input ends."""
        threads = [threading.Thread(target=self._answer, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        with (
            (self.folder / f"{self.name}.samples").open("ab") as samples,
            (self.folder / f"{self.name}.answered").open("a") as answered,
        ):
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.25)
                taken, self.samples = self.samples, []
                array("d", taken).tofile(samples)
                told, self.answered = self.answered, []
                answered.writelines(told)
                samples.flush()
                answered.flush()

    def _answer(self, thread: int) -> None:
        due = time.monotonic() + self.period * thread / THREADS
        for number in itertools.count():
            if self.done.wait(max(0.0, due - time.monotonic())):
                return
            due = max(due + self.period, time.monotonic() - 1.0)  # never more than a second behind
            question = f"{self.name} {os.getpid()} {thread} {number}"
            inside: list[float] = []
            _inside.set(inside)
            began = time.monotonic()
            try:
                is_right = self.chain.invoke(question) == ANSWER
            except Exception:
                is_right = False
            took = time.monotonic() - began
            self.failures += not is_right
            self.samples += (began, took, sum(inside))
            self.answered.append(f"{question}\n")


def main() -> None:
    """Answer until told to end, then flush and report as one JSON line."""
    folder, name, rate = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    is_control = "--control" in sys.argv
    complaints = Complaints(logging.WARNING)
    logging.getLogger("langchain_core").addHandler(complaints)
    client = Client(folder, name, rate)
    clock = Clock()
    is_stored = True
    if not is_control:
        from ragblame import attach
        from ragblame.plugin import recorder
        from ragblame.plugin.handler import BlameHandler

        watch_callbacks(BlameHandler)
        ledger = Ledger(folder / f"{name}.ledger")
        recorder.install(recorder.Recorder(on_safe=ledger.write))
        attach("soak")
    runner = threading.Thread(target=client.run)
    print("ready", flush=True)
    runner.start()
    for line in sys.stdin:
        if line.startswith("clock "):
            clock.offset = float(line.split()[1])
    client.done.set()
    runner.join()
    if not is_control:
        from ragblame.plugin import recorder

        is_stored = recorder.flush(120)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        json.dumps(
            {
                "failures": client.failures,
                "complaints": complaints.count,
                "is_stored": is_stored,
                "peak_mib": memory,
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
