"""What is stored around a verdict, read for its provenance: factors of severity, thresholds by version."""

from typing import TYPE_CHECKING, Any
from uuid import UUID

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.thresholds import find_thresholds
from ragblame.attribution.verdicts.provenance import Provenance, trace_verdicts
from ragblame.attribution.verdicts.severity import Factors
from ragblame.records import Explanation

if TYPE_CHECKING:
    import psycopg


def read_provenance(conn: "psycopg.Connection[Any]", explanation: Explanation) -> tuple[Provenance, ...]:
    """The chain behind each verdict of a stored explanation. Raises ``InputError``, ``DatabaseError``."""
    versions = {verdict.thresholds_version for verdict in explanation.verdicts}
    found = {version: find_thresholds(conn, version) for version in sorted(versions)}
    thresholds = {version: values for version, values in found.items() if values is not None}
    return trace_verdicts(explanation, thresholds, read_factors(conn, explanation.trace.id))


def read_factors(conn: "psycopg.Connection[Any]", trace_id: UUID) -> dict[int, Factors]:
    """What the severity of each flagged span was made of when last counted. Raises ``DatabaseError``."""
    with database_faults("verdicts", trace_id):
        rows = conn.execute(
            "SELECT span, probability, is_calibrated, harm, seen FROM ragblame.verdict "
            "WHERE trace_id = %s AND seen IS NOT NULL",
            (trace_id,),
        ).fetchall()
    return {
        span: Factors(probability=probability, is_calibrated=is_calibrated, harm=harm, seen=seen)
        for span, probability, is_calibrated, harm, seen in rows
    }
