"""What attribution tells about support: whether the sentence that was read is about somebody else.

It exists because the text alone cannot say whether a name or a short value in a sentence about another
subject is the asked one in other words, or a borrowed one. Where the scorer shows that the span was read from
just that chunk, the doubt ends: the value came from a sentence about another subject.
"""

from dataclasses import replace

from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.table import Influence
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import SupportState

RULE = "value read from a sentence about another subject"


def settle(finding: Finding, influence: Influence | None, thresholds: Thresholds) -> Finding:
    """The finding, with an unclear value made absent where its only sources are read and about others.

    ``influence``: None where nothing was measured; then, as where the chunk with the largest share is not
    among those sources, the finding comes back as it is.
    """
    if finding.support.state is not SupportState.UNCLEAR or not finding.borrowed_from or influence is None:
        return finding
    used = influence.used(thresholds) if influence.reliance > thresholds.tau_nats else ()
    if not used or used[0] not in finding.borrowed_from:
        return finding
    return replace(finding, support=replace(finding.support, state=SupportState.ABSENT, rule=RULE))
