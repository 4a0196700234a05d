"""The tracers whose cost is compared, each whole but for the network: what it would send is made and dropped.

A tracer that never builds its bytes would look cheap, and one that retries against a closed port would look
dear, so each gets a sink of its own kind that takes the finished bytes: `Cut.sink` says which.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from capture_chain import RUNS
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers import BaseTracer
from langchain_core.tracers.schemas import Run

CLOSED: Final = "http://127.0.0.1:9"  # the discard port: nothing listens, and nothing is sent there either
_POSTED: Final = re.compile(rb'name="post\.([0-9a-f-]{36})"')


@dataclass(slots=True)
class Sink:
    """Where bytes end: counted, and kept only while somebody wants to look at them."""

    records: str  # what it counts, in words
    is_keeping: bool = False
    count: int = 0
    kept: list[bytes] = field(default_factory=list)

    def take(self, body: bytes, count: int = 0) -> None:
        """Receive what would have gone over the network."""
        self.count += count
        if self.is_keeping:
            self.kept.append(body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A tracer cut off the network."""

    sink: str  # in words, for the report
    taken: Sink | None  # None: it records nothing
    per_run: int = 0  # records it must make of one run of the chain
    handlers: tuple[BaseCallbackHandler, ...] = ()
    switch: Callable[[bool], object] = lambda is_on: None  # for what attaches itself to the whole process
    flush: Callable[[], object] = lambda: None  # waits until its threads have done their work


class NoOpTracer(BaseTracer):
    """LangChain's run-tree tracer with nothing behind it: the floor of every tracer that derives from it."""

    def _persist_run(self, run: Run) -> None:
        pass


def noop_handler() -> Cut:
    """A handler that hears every event and does nothing."""
    return Cut(sink="none", taken=None, handlers=(BaseCallbackHandler(),))


class InlineHandler(BaseCallbackHandler):
    """Called in place, as ours is: without a hop to another thread in asynchronous chains."""

    run_inline = True


def inline_handler() -> Cut:
    """A handler that hears every event and does nothing: what any callback costs, by LangChain's dispatch."""
    return Cut(sink="none", taken=None, handlers=(InlineHandler(),))


def noop_tracer() -> Cut:
    """See ``NoOpTracer``."""
    return Cut(sink="none", taken=None, handlers=(NoOpTracer(),))


def ragblame() -> Cut:
    """Ours: assembled in the recorder's thread, then the record that the spool would write."""
    from ragblame.plugin.handler import BlameHandler
    from ragblame.plugin.recorder import flush
    from ragblame.plugin.spool_files import encode
    from ragblame.trace_json import clean_to_json

    taken = Sink("trace")
    handler = BlameHandler(app="benchmark", sink=lambda trace: taken.take(encode(clean_to_json(trace)), 1))
    return Cut(
        sink="a sink that makes the spool's record and drops it",
        taken=taken,
        per_run=1,
        handlers=(handler,),
        flush=lambda: flush(60),
    )


def langsmith() -> Cut:
    """LangSmith's tracer with its own client, queue, thread and multipart encoding."""
    import requests
    from langchain_core.tracers import LangChainTracer
    from langsmith import Client

    taken = Sink("runs")

    class Dropped(requests.Session):
        """Takes the request's body and answers that it was accepted."""

        def request(self, *args: Any, data: Any = None, **kwargs: Any) -> requests.Response:
            body = data.read() if hasattr(data, "read") else bytes(data or b"")
            taken.take(body, len(set(_POSTED.findall(body))) if taken.is_keeping else 0)
            response = requests.Response()
            response.status_code, response._content = 202, b"{}"
            return response

    client = Client(
        api_url=CLOSED,
        api_key="none",
        session=Dropped(),
        info={"batch_ingest_config": {"use_multipart_endpoint": True, "size_limit": 100,
              "size_limit_bytes": 20_971_520, "scale_up_nthreads_limit": 16, "scale_up_qsize_trigger": 1000,
              "scale_down_nempty_trigger": 4}},  # its server's own values, so that it need not ask
    )  # fmt: skip
    return Cut(
        sink="an HTTP session that reads the multipart body and drops it",
        taken=taken,
        per_run=RUNS,
        handlers=(LangChainTracer(client=client, project_name="benchmark"),),
        flush=client.flush,
    )


def langfuse() -> Cut:
    """Langfuse's handler with its own client and span processor."""
    handler = import_module("langfuse.langchain").CallbackHandler
    exporter, taken = _dropping_exporter()
    client = import_module("langfuse").Langfuse(
        public_key="pk-none", secret_key="sk-none", base_url=CLOSED, span_exporter=exporter
    )
    return Cut(
        sink="a span exporter that makes OTLP protobuf and drops it",
        taken=taken,
        per_run=RUNS,
        handlers=(handler(public_key="pk-none"),),
        flush=client.flush,
    )


def openinference() -> Cut:
    """OpenInference's instrumentor behind OpenTelemetry's batch processor, as Phoenix sets it up."""
    instrumentor = import_module("openinference.instrumentation.langchain").LangChainInstrumentor()
    exporter, taken = _dropping_exporter()
    provider = import_module("opentelemetry.sdk.trace").TracerProvider()
    processor = import_module("opentelemetry.sdk.trace.export").BatchSpanProcessor(exporter)
    provider.add_span_processor(processor)

    def switch(is_on: bool) -> None:
        if is_on:
            instrumentor.instrument(tracer_provider=provider)
        else:
            instrumentor.uninstrument()

    return Cut(
        sink="a span exporter that makes OTLP protobuf and drops it",
        taken=taken,
        per_run=RUNS,
        switch=switch,
        flush=provider.force_flush,
    )


def _dropping_exporter() -> tuple[Any, Sink]:
    """An OpenTelemetry exporter that does all the work of the real one but the request."""
    encode = import_module("opentelemetry.exporter.otlp.proto.common.trace_encoder").encode_spans
    success = import_module("opentelemetry.sdk.trace.export").SpanExportResult.SUCCESS
    taken = Sink("spans")

    class Dropped:
        """Encodes and drops."""

        def export(self, spans: Any) -> Any:
            """Take a batch."""
            taken.take(encode(spans).SerializeToString(), len(spans))
            return success

        def force_flush(self, timeout_millis: int = 0) -> bool:
            """Nothing waits."""
            return True

        def shutdown(self) -> None:
            """Nothing is open."""

    return Dropped(), taken


CONTENDERS: Final[dict[str, Callable[[], Cut]]] = {
    "no-op handler": noop_handler,
    "no-op handler, inline": inline_handler,
    "LangChain BaseTracer, no-op": noop_tracer,
    "LangSmith": langsmith,
    "Langfuse": langfuse,
    "OpenInference": openinference,
    "ragblame": ragblame,
}
PEERS: Final = ("LangSmith", "Langfuse", "OpenInference")
PACKAGES: Final = {
    "LangSmith": "langsmith",
    "Langfuse": "langfuse",
    "OpenInference": "openinference-instrumentation-langchain",
}
