"""Fills a migrated database with the example traces in every state the triage page knows."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg

from ragblame import database
from ragblame.attribution.jobs.results import write_explanation, write_failure
from ragblame.records import Explanation, Trace
from ragblame.traces import new_trace_id, write_traces
from tests.example_cases import example_explanations


def store_explanation(conn: psycopg.Connection, explanation: Explanation) -> UUID:
    """Store a trace with its results, as recorder and worker would; returns the trace's id."""
    write_traces(conn, [explanation.trace], enqueue=False)
    write_explanation(conn, explanation)
    return explanation.trace.id


def bare_trace(question: str, answer: str, minutes_ago: float = 1.0) -> Trace:
    """A trace no worker has seen."""
    asked = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return Trace(
        id=new_trace_id(asked), app="runbook-assistant", question=question, answer=answer, started_at=asked
    )


def seed(url: str) -> dict[str, UUID]:
    """All examples, one waiting and one failed trace; returns ids by the first words of the question."""
    with database.connect(url) as conn:
        ids = {entry.trace.question[:24]: store_explanation(conn, entry) for entry in example_explanations()}
        waiting = bare_trace("Who is on call for the gannet pipeline?", "The Oslo team is on call.")
        failed = bare_trace("What does error K-19 of the ibis relay mean?", "A full disk.", minutes_ago=30)
        write_traces(conn, [waiting], enqueue=True)
        write_traces(conn, [failed], enqueue=False)
        message = "the model folder /models/ibis holds no tokenizer: copy it there, then rerun the job"
        write_failure(conn, failed.id, message)
        ids |= {"waiting": waiting.id, "failed": failed.id}
    return ids


def many(conn: psycopg.Connection, count: int) -> list[UUID]:
    """``count`` copies of the first example, a minute apart, with slowly falling severities."""
    first = example_explanations()[0]
    ids = []
    for number in range(count):
        trace_id = new_trace_id(first.trace.started_at - timedelta(minutes=number))
        trace = replace(first.trace, id=trace_id)
        verdicts = tuple(
            replace(verdict, severity=round(verdict.severity * (1 - number // 3 / count), 6))
            for verdict in first.verdicts
        )
        ids.append(store_explanation(conn, replace(first, trace=trace, verdicts=verdicts)))
    return ids
