"""What the corpus says, in plain words with rank and k: it goes on with the sentence about the prompt."""

from typing import Final

from ragblame.attribution.verdicts.corpus_case import CorpusCase
from ragblame.corpus import ProbeReport
from ragblame.records import Cause, CorpusEvidence, Verdict

DEEP: Final = 50  # ranks up to here are a matter of ranking, beyond it the vector does not see the row
_SUFFIX: Final = " Only the text was checked."


def continued(verdict: Verdict, more: str) -> str:
    """The one sentence of the verdict, gone on with."""
    said, suffix = verdict.explanation, ""
    if said.endswith(_SUFFIX):
        said, suffix = said.removesuffix(_SUFFIX), _SUFFIX
    return f"{said.removesuffix('.')}; {more}.{suffix}"


def why_not_used(case: CorpusCase, record: CorpusEvidence) -> str:
    """Where the row stands and why it was not used, with its rank and k."""
    rank = _about(record.rank, record.is_exact)
    k = f"k = {case.k}" if case.request.k is not None else f"{case.k} were retrieved"
    kind = case.retrieval.search_type or "hybrid"  # where it is not known, only the documents tell
    match record.cause:
        case Cause.QUERY_REWRITING:
            worse = f"{rank} for the rewritten query" if record.rank else "not found by the rewritten query"
            if record.rank is not None and record.rank <= case.k:  # its vectors see it, its words do not
                worse = f"passed over by the {kind} search for the rewritten query"
            return f"the right chunk is #{record.question_rank} for the question but {worse}, and {k}"
        case Cause.RANKED_TOO_LOW if record.rank is not None and record.rank <= case.k:
            return f"the right chunk is {rank} for the query, and {k}, but the {kind} search passed over it"
        case Cause.RANKED_TOO_LOW:
            row = case.report.chunk(record.row_id)
            fused = None if row is None else case.fused_rank(row)
            beside = "" if fused is None else f" and #{fused} in the hybrid order"
            return f"the right chunk is {rank} for the query{beside}, and {k}"
        case Cause.INDEX_MISS if case.is_untold:
            return (
                f"the right chunk is {rank} for the query, and {k}, but not this one: by the index, or by a "
                "filter that was not captured"
            )
        case Cause.INDEX_MISS:
            return f"the right chunk is {rank} for the query, and {k}, but the index did not return it"
        case Cause.FILTERED_OUT:
            return f"the right chunk is {rank} for the query, but the retriever's filter leaves it out"
        case Cause.SEMANTIC_GAP:
            far = f"{rank} for the query" if record.rank else f"beyond the first {DEEP} for the query"
            return f"the right chunk was found by {record.found_by[0]}, but is {far}, and {k}"
        case Cause.NOT_THERE_YET if record.is_newer:
            return f"the corpus says it only since {_when(record)}, after the answer"
        case Cause.NOT_THERE_YET:
            return "a retrieved row says it by now, but said something else when it was retrieved"
        case _:
            return "the corpus says it only where two neighbouring chunks are read together"


def without_rank(record: CorpusEvidence) -> str:
    """The row is there, and nobody can tell why it was not used."""
    found = record.found_by[0] if record.found_by else "the probe"
    return f"the corpus says it (found by {found}), but its rank for the query is not known"


def _about(rank: int | None, is_exact: bool) -> str:
    """ "#14", "about #14 (approximate)"."""
    if rank is None:
        return "without a rank"
    return f"#{rank}" if is_exact else f"about #{rank} (approximate)"


def _when(record: CorpusEvidence) -> str:
    return "later" if record.created_at is None else f"{record.created_at:%Y-%m-%d %H:%M %Z}".strip()


def nothing_found(report: ProbeReport) -> str:
    """What was searched in vain."""
    size = "" if report.rows is None else f" ({report.rows:,} rows)"
    count = len(report.searches)
    about = "" if report.is_exact else " (approximate)"
    return (
        f"nothing in {report.source}{size} says it: {count} search{'' if count == 1 else 'es'} found no "
        f"evidence{about}"
    )
