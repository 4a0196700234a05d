"""The cases behind the example explanations: every verdict, every warning of the page, and hostile text."""

from ragblame.records import Cause, Explanation, SpanKind, SupportState, VerdictKind
from tests.example_explanations import STAND_IN, UNFIT, Case, Said, explain

GROUNDED, DISTORTED, KNOWN = VerdictKind.GROUNDED, VerdictKind.DISTORTED, VerdictKind.KNOWN_ALREADY
FABRICATED, UNDETERMINED = VerdictKind.FABRICATED, VerdictKind.UNDETERMINED

KESTREL = (
    (
        "runbooks/kestrel.md",
        "The retention period of the kestrel queue is 14 days. Its owner is the Lagos team.",
    ),
    (
        "runbooks/osprey.md",
        "The retention period of the osprey queue is 90 days. Its owner is the Quito team.",
    ),
    ("runbooks/backups.md", "Backups of all queues run at 03:20 and are kept in the cold store."),
    (
        "postmortems/2031-04.md",
        "The kestrel queue lost messages because its disk was full; nobody was paged.",
    ),
)

CASES: tuple[Case, ...] = (
    Case(
        question="How long does the kestrel queue keep messages, and who owns it?",
        chunks=KESTREL,
        minutes_ago=3,
        answer=(
            "The kestrel queue keeps messages for ",
            Said(
                words="90 days",
                verdict=DISTORTED,
                cause=Cause.BORROWED,
                why="The answer gives the kestrel queue the 90 days of the osprey queue: chunk 2 made the "
                "model say it, but chunk 1 says 14 days of the kestrel queue.",
                shares=(-1.31, 6.92, 0.04, -0.12),
                v_none=-6.4,
                severity=0.94,
                support=SupportState.CONTRADICTED,
                chunk=0,
                evidence="The retention period of the kestrel queue is 14 days.",
                stated="14 days",
                fix="better chunk headings, filter by subject, ask for the subject in the prompt",
                others=(Cause.CONFLICTING_CHUNKS,),
            ),
            ", and its owner is ",
            Said(
                words="the Lagos team",
                verdict=GROUNDED,
                kind=SpanKind.NAME,
                why="Chunk 1 says it, and it is why the model said it.",
                shares=(9.64, 0.31, 0.02, 0.05),
                v_none=-10.3,
                chunk=0,
                evidence="Its owner is the Lagos team.",
                rule="name with subject",
            ),
            ". Backups run at ",
            Said(
                words="03:20",
                verdict=GROUNDED,
                why="Chunk 3 says it, and it is why the model said it.",
                shares=(0.02, -0.04, 8.21, 0.01),
                v_none=-8.6,
                chunk=2,
                evidence="Backups of all queues run at 03:20 and are kept in the cold store.",
            ),
            ".",
        ),
    ),
    Case(
        question="Which port does the harrier service listen on?",
        query="harrier service port",
        chunks=(
            ("runbooks/harrier.md", "The port of the harrier service is 7113. It runs in the north cluster."),
            ("runbooks/merlin.md", "The port of the merlin service is 5040."),
        ),
        minutes_ago=18,
        answer=(
            "The harrier service listens on port ",
            Said(
                words="8080",
                verdict=FABRICATED,
                cause=Cause.MEMORY_OVERRIDE,
                why="The model says 8080 from memory, with or without the documents; chunk 1 says 7113.",
                shares=(-0.42, 0.06),
                v_none=-0.09,
                severity=0.88,
                support=SupportState.CONTRADICTED,
                chunk=0,
                evidence="The port of the harrier service is 7113.",
                stated="7113",
                fix="prompt, model, position of the chunk",
            ),
            " and runs in ",
            Said(
                words="the north cluster",
                verdict=GROUNDED,
                kind=SpanKind.NAME,
                why="Chunk 1 says it, and it is why the model said it.",
                shares=(7.3, 0.1),
                v_none=-7.8,
                chunk=0,
                evidence="It runs in the north cluster.",
                rule="name with subject",
            ),
            ".",
        ),
    ),
    Case(
        question="When was the falcon cache introduced?",
        chunks=(
            ("design/caches.md", "The falcon cache sits before the ledger store and holds 40 GB."),
            ("runbooks/falcon.md", "Restart the falcon cache with two replicas at a time."),
        ),
        app="support-bot",
        minutes_ago=47,
        answer=(
            "The falcon cache was introduced in ",
            Said(
                words="2019",
                verdict=FABRICATED,
                kind=SpanKind.DATE,
                cause=Cause.NO_EVIDENCE_IN_PROMPT,
                why="No chunk of the prompt says when the falcon cache was introduced.",
                shares=(0.21, 0.02),
                v_none=-3.1,
                severity=0.71,
                support=SupportState.ABSENT,
                rule="date with subject",
                fix="the corpus lacks it, or retrieval missed it: search the corpus",
            ),
            " and holds ",
            Said(
                words="40 GB",
                verdict=GROUNDED,
                why="Chunk 1 says it, and it is why the model said it.",
                shares=(5.9, 0.0),
                v_none=-6.1,
                chunk=0,
                evidence="holds 40 GB.",
            ),
            ".",
        ),
    ),
    Case(
        question="What is the alert threshold of the heron gateway?",
        chunks=(
            ("runbooks/heron.md", "The heron gateway routes traffic of the harbour region."),
            ("runbooks/heron-alerts.md", "The alert threshold of the heron gateway is 450 ms."),
            ("runbooks/egret.md", "The egret gateway has no alert."),
        ),
        missing=frozenset({1}),
        minutes_ago=95,
        answer=(
            "The alert threshold of the heron gateway is ",
            Said(
                words="250 ms",
                verdict=FABRICATED,
                cause=Cause.DROPPED_AFTER_RETRIEVAL,
                why="Chunk 2 says 450 ms and was retrieved, but it does not stand in the prompt.",
                shares=(0.4, 0.0, -0.1),
                v_none=-4.2,
                severity=0.66,
                support=SupportState.CONTRADICTED,
                chunk=1,
                evidence="The alert threshold of the heron gateway is 450 ms.",
                stated="450 ms",
                fix="raise the context budget, check the reranker or compressor",
            ),
            ".",
        ),
    ),
    Case(
        question="In which city is the main office of the wren team?",
        chunks=(("people/wren.md", "The main office of the wren team is in Lisbon."),),
        app="support-bot",
        model="gpt-4.1-mini",
        scorer=STAND_IN,
        minutes_ago=210,
        answer=(
            "The main office of the wren team is in ",
            Said(
                words="Lisbon",
                verdict=KNOWN,
                kind=SpanKind.NAME,
                why="Chunk 1 says it, but the model would have said it anyway.",
                shares=(0.12,),
                v_none=-0.14,
                chunk=0,
                evidence="The main office of the wren team is in Lisbon.",
                rule="name with subject",
            ),
            ".",
        ),
    ),
    Case(
        question="How many replicas does the plover index have?",
        chunks=(
            ("runbooks/plover.md", "The plover index has 3 replicas."),
            ("changes/0711.md", "Since July the plover index has 5 replicas."),
        ),
        minutes_ago=360,
        answer=(
            "The plover index has ",
            Said(
                words="5 replicas",
                verdict=DISTORTED,
                cause=Cause.CONFLICTING_CHUNKS,
                why="Chunk 2 says 5 replicas and chunk 1 says 3; the model followed chunk 2.",
                shares=(-2.2, 5.1),
                v_none=-3.6,
                severity=0.52,
                support=SupportState.CONTRADICTED,
                chunk=0,
                evidence="The plover index has 3 replicas.",
                stated="3 replicas",
                fix="deduplicate, prefer the fresher document, let the prompt ask for a warning",
            ),
            ", and it is ",
            Said(
                words="not sharded",
                verdict=UNDETERMINED,
                kind=SpanKind.NEGATION,
                why="The reliance lies within three sigma of the threshold: a person decides.",
                shares=(0.6, 0.5),
                v_none=-2.0,
                support=SupportState.UNCLEAR,
                rule="negation",
            ),
            ".",
        ),
    ),
    Case(
        question="Who invented the telephone, according to the passage?",
        chunks=(("p1", "Alexander Graham Bell was awarded the first patent for the telephone in 1876."),),
        app="imported",
        model="gpt-3.5-turbo",
        scorer=STAND_IN,
        fitness=UNFIT,
        minutes_ago=1_500,
        notes=("Attribution was left out: the scorer cannot explain this answer.",),
        answer=(
            "Bell was awarded the first patent in ",
            Said(
                words="1886",
                verdict=DISTORTED,
                kind=SpanKind.DATE,
                cause=Cause.DISTORTION,
                why="Chunk 1 says 1876 where the answer says 1886.",
                severity=0.61,
                support=SupportState.CONTRADICTED,
                rule="date with subject",
                chunk=0,
                evidence="Alexander Graham Bell was awarded the first patent for the telephone in 1876.",
                stated="1876",
                fix="prompt, model, chunk format",
            ),
            ".",
        ),
    ),
)

# Each payload would do something visible if any part of the page took it for markup.
HOSTILE = (
    "<script>window.ragblameHacked = 1</script>",
    '<img src="https://leak.invalid/img" onerror="window.ragblameHacked = 2">',
    '<iframe srcdoc="<script>parent.ragblameHacked = 3</script>"></iframe>',
    "![pixel](https://leak.invalid/md.png)",
    "[link](javascript:window.ragblameHacked=4)",
    "$\\frac{1}{2}$ :red[alarm] :material/home: :streamlit: **bold** `code`",
    "<style>body { display: none !important }</style>",
    '</textarea></script><svg onload="window.ragblameHacked = 5">',
    "{{ 7 * 7 }} ${window.ragblameHacked = 6} datum.share = 1",
    "\u202eright to left\u202c 👩‍👩‍👧‍👦 e\u0301 line\r\nbreak",
)


def hostile_explanation() -> Explanation:
    """Payloads in every field that a stranger can write."""
    all_of_it = "\n".join(HOSTILE)
    spans = [
        part
        for index, payload in enumerate(HOSTILE)
        for part in (
            Said(
                words=payload,
                verdict=FABRICATED if index % 2 else DISTORTED,
                kind=SpanKind.QUOTE,
                cause=Cause.NO_EVIDENCE_IN_PROMPT,
                why=f"Why {payload}",
                shares=(0.5, -0.25 * index),
                severity=0.99 - index / 100,
                support=SupportState.CONTRADICTED,
                rule=payload,
                chunk=0,
                evidence=payload,
                stated=payload,
                fix=payload,
            ),
            " then ",
        )
    ]
    return explain(
        Case(
            question=all_of_it,
            query=f"{all_of_it} again",
            chunks=((all_of_it, f"before {all_of_it} after"), (HOSTILE[1], HOSTILE[3])),
            answer=tuple(spans),
            app=HOSTILE[3],
            model=HOSTILE[1],
            notes=(all_of_it,),
            metadata={HOSTILE[0]: all_of_it},
            minutes_ago=1,
        )
    )


def example_explanations() -> list[Explanation]:
    """One explanation per case."""
    return [explain(case) for case in CASES]
