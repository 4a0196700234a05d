"""Makes tests/data/openinference_*.jsonl and langfuse_*.jsonl: what the real tracers write of real chains.

Run it where the peers of benchmarks/capture_peers.txt are installed, as `make bench-capture` does:
    build/bench-capture/bin/python tests/make_tracer_exports.py
OpenInference's files are what its instrumentor hands to an exporter, as the SDK's own JSON and as OTLP. For
Langfuse the spans of its handler are renamed to the fields under which its server gives them back.
"""

import base64
import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

_STACK = re.compile(r'"[^"]*Traceback \(most recent(?:[^"\\]|\\.)*"')
DATA = Path(__file__).with_name("data")
ROWS = (
    ("row-17", "Kestrel gateways listen on port 2959.", 0.91),
    ("row-4", "The Kestrel gateway was moved to Oslo in 2024.", 0.44),
    ("row-9", "Ports below 1024 need root – even for “tests”.", 0.12),
)


class Notes(BaseRetriever):
    """Three rows with an identity, a score and a table."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [
            Document(id=row, page_content=text, metadata={"score": score, "source_table": "public.notes"})
            for row, text, score in ROWS
        ]


class Scripted(BaseChatModel):
    """Says one thing, or fails."""

    says: str
    model_name: str = "scripted-1"

    @property
    def _llm_type(self) -> str:
        return "scripted"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> Any:
        if not self.says:
            raise RuntimeError("the model is overloaded")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=self.says))])


def chain(answer: str) -> Runnable[Any, Any]:
    """A history-aware retrieval chain: rewrite the question, search, answer."""
    rewrite = (
        ChatPromptTemplate.from_messages(
            [("system", "Rewrite as one question."), MessagesPlaceholder("history"), ("human", "{input}")]
        )
        | Scripted(says="On which port does the Kestrel gateway listen?", model_name="rewriter-1")
        | StrOutputParser()
    )
    prompt = ChatPromptTemplate.from_messages(
        [
            ("system", "Answer from:\n{notes}"),
            MessagesPlaceholder("history"),
            ("human", "{input}"),
        ]
    )
    whole: Runnable[Any, Any] = (
        RunnablePassthrough.assign(context=(rewrite | Notes()).with_config(run_name="search"))
        .assign(notes=RunnableLambda(_join))
        .assign(answer=prompt | Scripted(says=answer) | StrOutputParser())
        .with_config(run_name="support")
    )
    return whole


def _join(inputs: dict[str, Any]) -> str:
    return "\n\n".join(document.page_content for document in inputs["context"])


TALK = [HumanMessage("Tell me about Kestrel."), AIMessage("It is a gateway.")]
RUNS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"input": "Which port?", "history": TALK}, "It listens on port 2959."),
    ({"input": "Where does it run?", "history": []}, "In Oslo, since 2024."),
    ({"input": "And in an outage?", "history": []}, ""),
)


def ask(config: Any) -> None:
    """Every run once; the last one fails."""
    for inputs, answer in RUNS:
        try:
            chain(answer).invoke(inputs, config)
        except RuntimeError:
            continue


def openinference() -> None:
    """Record with the instrumentor and write both forms."""
    provider, spans = recorder()
    instrumentor = import_module("openinference.instrumentation.langchain").LangChainInstrumentor()
    instrumentor.instrument(tracer_provider=provider)
    ask({"metadata": {"thread_id": "talk-1", "tenant": "acme"}, "tags": ["canary"]})
    instrumentor.uninstrument()
    found = list(spans.get_finished_spans())
    write("openinference_spans.jsonl", [json.loads(span.to_json()) for span in found])
    encode = import_module("opentelemetry.exporter.otlp.proto.common.trace_encoder").encode_spans
    to_json = import_module("google.protobuf.json_format").MessageToDict
    by_trace: dict[int, list[Any]] = {}
    for span in found:
        by_trace.setdefault(span.context.trace_id, []).append(span)
    write("openinference_otlp.jsonl", [hexadecimal(to_json(encode(some))) for some in by_trace.values()])


def hexadecimal(value: Any, key: str = "") -> Any:
    """Ids as OTLP's JSON wants them: protobuf's own writes base64."""
    if isinstance(value, dict):
        return {name: hexadecimal(entry, name) for name, entry in value.items()}
    if isinstance(value, list):
        return [hexadecimal(entry) for entry in value]
    return base64.b64decode(value).hex() if key in ("traceId", "spanId", "parentSpanId") else value


def langfuse() -> None:
    """Record with the handler, then name things as the server does."""
    _, spans = recorder()
    client = import_module("langfuse").Langfuse(
        public_key="pk-none", secret_key="sk-none", base_url="http://127.0.0.1:9", span_exporter=spans
    )
    handler = import_module("langfuse.langchain").CallbackHandler(public_key="pk-none")
    ask({"callbacks": [handler], "metadata": {"langfuse_session_id": "talk-1", "tenant": "acme"},
         "tags": ["canary"]})  # fmt: skip
    client.flush()
    by_trace: dict[str, list[dict[str, Any]]] = {}
    for span in spans.get_finished_spans():
        observation = observation_of(json.loads(span.to_json()))
        by_trace.setdefault(observation["traceId"], []).append(observation)
    traces, rows = [], []
    for identity, observations in by_trace.items():
        root = next(one for one in observations if one["parentObservationId"] is None)
        trace = {
            "id": identity, "timestamp": root["startTime"], "name": root["name"], "input": None,
            "output": None, "sessionId": "talk-1", "userId": None, "tags": ["canary"],
            "metadata": {"tenant": "acme"}, "environment": "default", "public": False, "scores": [],
        }  # fmt: skip
        traces.append(trace | {"observations": observations})
        rows += [row_of(one, trace) for one in observations]
    write("langfuse_traces.jsonl", traces)
    write("langfuse_observations.jsonl", rows)


def observation_of(span: dict[str, Any]) -> dict[str, Any]:
    """A span of the handler with the names of the API."""
    given = {key.removeprefix("langfuse.observation."): entry for key, entry in span["attributes"].items()}
    return {
        "id": span["context"]["span_id"].removeprefix("0x"),
        "traceId": span["context"]["trace_id"].removeprefix("0x"),
        "parentObservationId": (span["parent_id"] or "").removeprefix("0x") or None,
        "type": given["type"].upper(),
        "name": span["name"],
        "startTime": span["start_time"],
        "endTime": span["end_time"],
        "input": loaded(given.get("input")),
        "output": loaded(given.get("output")),
        "model": given.get("model.name"),
        "modelParameters": loaded(given.get("model.parameters")),
        "metadata": {
            key.removeprefix("metadata."): loaded(entry)
            for key, entry in given.items()
            if key.startswith("metadata.")
        },
        "level": given.get("level", "DEFAULT"),
        "statusMessage": given.get("status_message"),
        "environment": "default",
    }


def row_of(one: dict[str, Any], trace: dict[str, Any]) -> dict[str, Any]:
    """The same as a row of the blob storage export: snake case, texts, empty instead of null."""

    def text(value: Any) -> str:
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)

    def moment(value: str) -> str:
        return value.replace("T", " ").removesuffix("Z")

    return {
        "id": one["id"], "trace_id": one["traceId"], "project_id": "p", "environment": "default",
        "type": one["type"], "parent_observation_id": one["parentObservationId"] or "",
        "start_time": moment(one["startTime"]), "end_time": moment(one["endTime"]), "name": one["name"],
        "metadata": one["metadata"], "level": one["level"], "status_message": one["statusMessage"] or "",
        "version": "", "input": text(one["input"]), "output": text(one["output"]),
        "provided_model_name": one["model"] or "", "model_parameters": text(one["modelParameters"]),
        "user_id": "", "session_id": trace["sessionId"], "trace_name": trace["name"],
        "tags": trace["tags"], "release": "",
    }  # fmt: skip


def recorder() -> tuple[Any, Any]:
    """A provider and the exporter in memory behind it."""
    exporter = import_module("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = import_module("opentelemetry.sdk.trace").TracerProvider()
    provider.add_span_processor(import_module("opentelemetry.sdk.trace.export").SimpleSpanProcessor(exporter))
    return provider, exporter


def loaded(value: Any) -> Any:
    """JSON in a text as its value, as the server gives it back."""
    try:
        return json.loads(value)
    except (TypeError, ValueError):
        return value


def write(name: str, values: list[Any]) -> None:
    """One value per line, without paths of the machine that made it."""
    lines = []
    for value in values:
        line = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        line = re.sub(
            r'"[^"]*Traceback \(most recent(?:[^"\\]|\\.)*"', '"RuntimeError: a trace of the stack"', line
        )
        lines.append(line)
    DATA.mkdir(exist_ok=True)
    (DATA / name).write_text("\n".join(lines) + "\n", "utf-8")
    print(f"{name}: {len(lines)} lines", file=sys.stderr)


if __name__ == "__main__":
    openinference()
    langfuse()
