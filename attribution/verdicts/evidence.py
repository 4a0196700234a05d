"""Reads the chunks sentence by sentence and remembers who each one is about, so that evidence can be found.

A sentence that names nobody ("Its timeout is 90 seconds.") is about the subject of the sentence before it in
the same chunk. Subjects are entities: a run of names with the noun they lead ("Kestrel gateway"), because
siblings share the name and differ in the noun only.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from itertools import pairwise

from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.verdicts.aliases import Alias, find_aliases
from ragblame.attribution.verdicts.normalise import PERSONAL_PRONOUNS, STOP_WORDS, Word, words
from ragblame.attribution.verdicts.quantities import Quantity, find_quantities
from ragblame.records import Alignment, AlignmentState, Chunk

_COPULAS = frozenset(("is", "are", "was", "were", "be", "has", "have", "had", "will", "can", "may", "must"))
_TITLES = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "sir", "lord", "lady", "king", "queen", "prince", "princess", "president"),
        *("senator", "governor", "professor", "prof", "captain", "general", "saint", "st", "mount", "lake"),
        *("pope", "emperor", "minister", "judge", "justice", "coach"),
    )
)
ALIKE = 0.9  # two words from this similarity on are one word misspelt
SUBJECT_WORDS = 8  # a sentence names its subject within so many words, or not at all
MAX_SHARED = 400  # sentences that may hold a word before it says nothing about where to look


@dataclass(frozen=True, slots=True)
class Entity:
    """Somebody or something a sentence is about."""

    names: tuple[str, ...]  # stems of the capitalised run
    head: str | None  # stem of the noun right behind it: "gateway"
    start: int  # index of its first word in the sentence

    @property
    def stems(self) -> frozenset[str]:
        """All of its words."""
        return frozenset(self.names) if self.head is None else frozenset((*self.names, self.head))

    def is_rival(self, other: "Entity") -> bool:
        """Whether both share a name and are different things all the same."""
        if not set(self.names) & set(other.names):
            return False
        if self.head is not None and other.head is not None and self.names == other.names:
            return self.head != other.head
        return (
            len(self.names) == len(other.names) > 1
            and self.names != other.names
            and not _TITLES & (set(self.names) ^ set(other.names))
            and not _is_misspelt(self.names, other.names)
        )


def _is_misspelt(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether two names differ by a letter or so: "Maastrich" is "Maastricht", "srv1" is not "srv2"."""
    return all(
        mine == theirs
        or (mine.isalpha() and theirs.isalpha() and SequenceMatcher(None, mine, theirs).ratio() >= ALIKE)
        for mine, theirs in zip(left, right, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a chunk."""

    index: int
    position: int  # the chunk
    start: int  # code points in the chunk's text, white space trimmed
    end: int
    text: str  # as cut, outer white space included
    items: tuple[Word, ...]
    stems: frozenset[str]  # of its own content words, and of what a short form among them stands for
    entities: tuple[Entity, ...]
    subject: Entity | None  # its own, or carried over from an earlier sentence of the chunk
    quantities: tuple[Quantity, ...]  # offsets in the sentence as it was cut
    is_in_prompt: bool

    @property
    def reach(self) -> frozenset[str]:
        """What the sentence says, its carried-over subject included."""
        return self.stems if self.subject is None else self.stems | self.subject.stems


def find_entities(items: Sequence[Word], text: str, names: frozenset[str]) -> tuple[Entity, ...]:
    """Entities of a sentence. ``names``: folded words known to be names wherever and however they stand."""
    found = []
    index = 0
    while index < len(items):
        if not _is_name(items, index, names):
            index += 1
            continue
        last = index
        while (
            last + 1 < len(items)
            and _is_adjacent(items[last], items[last + 1], text)
            and _is_name(items, last + 1, names)
        ):
            last += 1
        head = None
        if last + 1 < len(items) and _is_adjacent(items[last], items[last + 1], text):
            follower = items[last + 1]
            after = items[last + 2] if last + 2 < len(items) else None
            if follower.is_content and follower.surface.isalpha() and not _is_verb(follower, after):
                head = follower.stem
        found.append(Entity(tuple(word.stem for word in items[index : last + 1]), head, index))
        index = last + 1
    return tuple(found)


def _is_adjacent(left: Word, right: Word, text: str) -> bool:
    return right.start - left.end == 1 and text[left.end] in " -\u00a0\n"


def _is_name(items: Sequence[Word], index: int, names: frozenset[str]) -> bool:
    word = items[index]
    if word.folded in names or word.stem in names:
        return True
    return index > 0 and word.is_capital and word.is_content and len(word.surface) > 1


def _is_verb(word: Word, after: Word | None) -> bool:
    """ "Kestrel listens on": a word in -s, -ed or -ing before a function word or a number is no head noun."""
    if word.folded.endswith(("ed", "ing")):
        return True
    follows = after is None or after.folded in STOP_WORDS or after.surface[0].isdigit()
    is_copula_next = after is not None and after.folded in _COPULAS
    return word.folded.endswith("s") and not word.folded.endswith("ss") and follows and not is_copula_next


def find_names(texts: Iterable[tuple[str, Sequence[Word]]]) -> frozenset[str]:
    """Folded words that stand capitalised right after another word: names, however written elsewhere."""
    inside: dict[str, int] = defaultdict(int)
    plain: dict[str, int] = defaultdict(int)
    for text, items in texts:
        for before, word in pairwise(items):
            if not word.is_content or not word.surface.isalpha():
                continue
            if not word.is_capital:
                plain[word.folded] += 1
            elif len(word.surface) > 1 and not text[before.end : word.start].strip(" '’"):
                inside[word.folded] += 1
    return frozenset(word for word, count in inside.items() if count > plain[word] // 4)


class Evidence:
    """All sentences of the chunks of one trace, indexed by word."""

    def __init__(
        self, chunks: Sequence[Chunk], alignments: Sequence[Alignment] | None, about: Sequence[str] = ()
    ) -> None:
        """``alignments``: which text stood in the prompt; None when nobody knows, and all counts as seen.

        ``about``: further texts (question, answer) whose names are names here too.
        """
        cut = [(chunk, start, end) for chunk in chunks for start, end in split_sentences(chunk.text)]
        read = [(chunk.text[start:end], words(chunk.text[start:end])) for chunk, start, end in cut]
        self.names = find_names([*read, *((text, words(text)) for text in about)])
        aliases = find_aliases(chunk.text for chunk in chunks)
        by_position = {alignment.position: alignment for alignment in alignments or ()}
        self.sentences: list[Sentence] = []
        self._postings: dict[str, list[int]] = defaultdict(list)
        carried: Entity | None = None
        carried_in = -1
        for (chunk, start, end), (text, items) in zip(cut, read, strict=True):
            if chunk.position != carried_in:
                carried, carried_in = None, chunk.position
            entities = find_entities(items, text, self.names)
            own = _own_subject(items, entities)
            carried = own or carried
            low, high = _trimmed(chunk.text, start, end)
            if low == high:
                continue
            sentence = Sentence(
                index=len(self.sentences),
                position=chunk.position,
                start=low,
                end=high,
                text=text,
                items=tuple(items),
                stems=_with_aliases(items, aliases),
                entities=entities,
                subject=carried,
                quantities=tuple(find_quantities(text)),
                is_in_prompt=alignments is None
                or _is_seen(by_position.get(chunk.position), chunk.text, low, high),
            )
            self.sentences.append(sentence)
            for stem in sentence.reach:
                self._postings[stem].append(sentence.index)

    @cached_property
    def stems_of(self) -> dict[int, frozenset[str]]:
        """All content stems of each chunk."""
        gathered: dict[int, set[str]] = defaultdict(set)
        for sentence in self.sentences:
            gathered[sentence.position] |= sentence.stems
        return {position: frozenset(stems) for position, stems in gathered.items()}

    def weight(self, stem: str) -> float:
        """Inverse document frequency over sentences: what every sentence says tells nothing."""
        return math.log(1.0 + (len(self.sentences) + 1.0) / (len(self._postings.get(stem, ())) + 1.0))

    def has(self, stem: str) -> bool:
        """Whether any sentence holds the word."""
        return stem in self._postings

    def coverage(self, wanted: Iterable[str], said: frozenset[str]) -> float:
        """Weighted share of ``wanted`` among ``said``, [0, 1]; 0 when nothing is wanted."""
        total = hit = 0.0
        for stem in wanted:
            weight = self.weight(stem)
            total += weight
            if stem in said:
                hit += weight
        return hit / total if total else 0.0

    def holding(self, stems: Iterable[str]) -> list[Sentence]:
        """Sentences that hold all of the words, in order."""
        postings = sorted((self._postings.get(stem, []) for stem in stems), key=len)
        if not postings:
            return []
        common = set(postings[0]).intersection(*postings[1:])
        return [self.sentences[index] for index in sorted(common)]

    def nearest(self, wanted: Iterable[str], limit: int) -> list[Sentence]:
        """The sentences that share most with ``wanted``, best first."""
        scores: dict[int, float] = defaultdict(float)
        for stem in wanted:
            postings = self._postings.get(stem, ())
            if len(postings) <= max(MAX_SHARED, len(self.sentences) // 4):
                weight = self.weight(stem)
                for index in postings:
                    scores[index] += weight
        best = sorted(scores, key=lambda index: (-scores[index], index))[:limit]
        return [self.sentences[index] for index in best]


def _with_aliases(items: Sequence[Word], aliases: Sequence[Alias]) -> frozenset[str]:
    """Stems of a sentence's content words, and of the other form of each name with a short one."""
    stems = frozenset(word.stem for word in items if word.is_content)
    if aliases:
        surfaces = frozenset(word.surface for word in items)
        for alias in aliases:
            stems = alias.widened(stems, surfaces)
    return stems


def _own_subject(items: Sequence[Word], entities: Sequence[Entity]) -> Entity | None:
    """The entity a sentence introduces before its verb; None when it leans on an earlier sentence."""
    if not items or not entities or items[0].folded in PERSONAL_PRONOUNS:
        return None
    verb = next((index for index, word in enumerate(items) if word.folded in _COPULAS), SUBJECT_WORDS)
    first = entities[0]
    return first if first.start < min(verb, SUBJECT_WORDS) else None


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _is_seen(alignment: Alignment | None, text: str, start: int, end: int) -> bool:
    """Whether ``[start, end)`` of a chunk's text stood in the prompt, but for punctuation and white space."""
    if alignment is None or alignment.state is AlignmentState.MISSING:
        return False
    if alignment.state is not AlignmentState.PARTIAL or alignment.found is None:
        return True
    lost = (text[max(low, start) : min(high, end)] for low, high in alignment.absent)
    is_within = alignment.found[0] <= start and end <= alignment.found[1]
    return is_within and not any(char.isalnum() for part in lost for char in part)
