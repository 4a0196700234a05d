"""What capture did and could not do, as Prometheus text: for a host's /metrics and for the doctor.

``metrics()`` gives the text; ``metrics_app`` is the same as an ASGI application, to be mounted. Neither needs
the database, so both answer while it is away, which is when somebody looks.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ragblame.plugin.counters import counters
from ragblame.plugin.recorder import recorder
from ragblame.plugin.run_tree import open_runs
from ragblame.plugin.spool_state import measure_spool, read_totals

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

# counter -> metric without its prefix, and what it counts; one that is not named here still shows, as "other"
_COUNTERS: Final[Mapping[str, tuple[str, str]]] = {
    "finished": ("traces_finished_total", "Runs that ended and were handed to the recorder."),
    "written": ("traces_written_total", "Traces committed by PostgreSQL."),
    "spooled": ("traces_spooled_total", "Traces put on the disk spool while PostgreSQL was away or slow."),
    "replayed": ("traces_replayed_total", "Traces brought from the spool to PostgreSQL."),
    "refused": ("traces_refused_total", "Traces that PostgreSQL will never take, kept in *.refused."),
    "capture_faults": ("capture_faults_total", "Exceptions of capture's own, kept from the host."),
    "redaction_faults": ("redaction_faults_total", "Texts masked whole, because a redaction rule failed."),
    "evicted_runs": ("evicted_runs_total", "Runs given up because they never ended or too many were open."),
}
DROPS: Final[Mapping[str, str]] = {  # counter -> what to do about it
    "dropped_queue_full": "raise RAGBLAME_QUEUE_MAX_TRACES or RAGBLAME_QUEUE_MAX_BYTES",
    "dropped_spool_full": "raise RAGBLAME_SPOOL_MAX_BYTES, or mend the database sooner",
    "dropped_spool_error": "make the spool's folder writable and give its disk room",
    "dropped_fault": "report it, with the log's first warning of ragblame",
}

Sample = tuple[Mapping[str, str], float]  # labels and value
Scope = Mapping[str, Any]


def metrics() -> str:
    """This process's counters and queue, and what lies on its spool once it captured something.

    It reads a folder's entries, nothing more: milliseconds, but not for an event loop.
    """
    waiting, held = recorder().waiting.load
    lines = list(_counters(counters.snapshot(), "process"))
    lines += family("queue_traces", "gauge", "Traces that wait in memory.", [({}, waiting)])
    lines += family("queue_bytes", "gauge", "Text held by waiting traces, bytes.", [({}, held)])
    lines += family("open_runs", "gauge", "Chains that run now.", [({}, len(open_runs))])
    folder = recorder().spool_folder
    if folder is not None:
        lines += folder_metrics(folder)
    return "\n".join(lines) + "\n"


def folder_metrics(folder: Path) -> Iterator[str]:
    """Lines about a spool folder: what waits, and the totals of all processes that ever used it."""
    size = measure_spool(folder)
    files = {"waiting": size.waiting_files, "refused": size.refused_files, "damaged": size.damaged_files}
    samples: list[Sample] = [({"state": state}, count) for state, count in files.items()]
    yield from family("spool_files", "gauge", "Files on the disk spool.", samples)
    yield from family("spool_bytes", "gauge", "Size of the disk spool.", [({}, size.bytes)])
    oldest = size.oldest_seconds or 0.0
    yield from family("spool_oldest_seconds", "gauge", "Age of the oldest waiting file.", [({}, oldest)])
    yield from _counters(read_totals(folder), "folder")


async def metrics_app(
    scope: Scope,
    receive: Callable[[], Awaitable[Scope]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """An ASGI application: ``app.mount("/metrics", ragblame.metrics_app)``. Any GET gets the text."""
    import asyncio

    if scope["type"] != "http":
        return
    is_get = scope.get("method", "GET") in ("GET", "HEAD")
    body = (await asyncio.to_thread(metrics)).encode() if is_get else b""
    headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200 if is_get else 405, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope.get("method") == "HEAD" else body})


def _counters(counts: Mapping[str, int], scope: str) -> Iterator[str]:
    """One family a counter, zeros included; ``scope`` tells a process from all that used a folder."""
    prefix = "" if scope == "process" else "folder_"
    suffix = "" if scope == "process" else " All processes of this data folder together."
    for name, (metric, text) in _COUNTERS.items():
        if scope == "process" or name in counts:
            yield from family(prefix + metric, "counter", text + suffix, [({}, counts.get(name, 0))])
    drops: list[Sample] = [({"reason": name.removeprefix("dropped_")}, counts.get(name, 0)) for name in DROPS]
    text = "Traces that are lost, by the reason."
    yield from family(f"{prefix}traces_dropped_total", "counter", text + suffix, drops)
    other: list[Sample] = [
        ({"name": name}, count)
        for name, count in sorted(counts.items())
        if name not in _COUNTERS and name not in DROPS
    ]
    if other:
        text = "Other things that capture counts."
        yield from family(f"{prefix}capture_total", "counter", text + suffix, other)


def family(name: str, kind: str, text: str, samples: list[Sample]) -> Iterator[str]:
    """The lines of one metric, its help and type first; ``kind``: counter or gauge."""
    yield f"# HELP ragblame_{name} {text}"
    yield f"# TYPE ragblame_{name} {kind}"
    for labels, value in samples:
        inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        yield f"ragblame_{name}{f'{{{inside}}}' if inside else ''} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:.3f}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
