"""Takes secrets and personal data out of a trace before it is queued, so that no disk or database sees them.

Every masked code point becomes ``MASK`` and white space stays, so all offsets hold. What one text of a trace
shows to be a secret is masked in all of them: chunk, prompt and answer stay comparable. It fails closed:
where a rule or the host's own function fails, the whole text is masked, and counted.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ragblame.plugin import personal_rules, secret_rules
from ragblame.plugin.counters import counters
from ragblame.plugin.masks import Masks, OwnRule, Rule
from ragblame.prompt_parts import chunk_places
from ragblame.trace_records import MASK, Chunk, Json, Message, Trace

if TYPE_CHECKING:
    from ragblame.settings import Settings

SECRET_RULES: Final[Mapping[str, Rule]] = {
    "private key": secret_rules.private_keys,
    "API key": secret_rules.tokens,
    "password in a URL": secret_rules.url_passwords,
    "named secret": secret_rules.named_secrets,
    "password": secret_rules.said_passwords,
}
PERSONAL_RULES: Final[Mapping[str, Rule]] = {
    "e-mail address": personal_rules.emails,
    "payment card": personal_rules.cards,
    "bank account": personal_rules.ibans,
    "phone number": personal_rules.phones,
}
# What a rule needs, looked for in all texts of a trace at once: nearly always it is not there. None may
# look at more than FARTHEST code points together.
HINTS: Final[dict[str, Callable[[str], bool]]] = {
    "private key": secret_rules.may_hold_private_keys,
    "API key": secret_rules.may_hold_tokens,
    "password in a URL": secret_rules.may_hold_url_passwords,
    "named secret": secret_rules.may_hold_named_secrets,
    "password": secret_rules.may_hold_said_passwords,
}
# What these find is a secret because of the words around it, so it is looked for wherever else it stands.
_BY_CONTEXT: Final = frozenset({"password in a URL", "named secret", "password"})
FARTHEST: Final = 64  # code points that a hint looks at together, at most; secret_rules' longest is 49
_SECRET_KEY: Final = re.compile(
    r"passw|passphrase|pwd|secret|credential|api[_\-. ]?key|private[_\-. ]?key|access[_\-. ]?key"
    r"|(?:access|auth|session|refresh|bearer|id)[_\-. ]?token|^token$|authorization|cookie"
    r"|connection[_\-. ]?string|^dsn$",
    re.IGNORECASE,
)
_SHORT_KEY: Final = 100  # code points of a key worth remembering
_HIDDEN: Final = MASK * 8  # a value under such a key: its length is nobody's business
_NOTES: Final = "ragblame"  # our own key in a trace's metadata
_MAPPINGS: Final = (dict, Mapping)  # the first is quickly told
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})  # hold nothing further
_AT_ONCE: Final = 200_000  # code points of all texts that are looked at together: about 0.2 ms
_CUT_NOTE, _CUT_ERROR = 500, 2_000  # code points from which these may have been cut at capture

_registered: list[OwnRule] = []


def redact_with(rule: OwnRule | None) -> None:
    """Let ``rule`` see every captured text and say what to mask; None: no own rule any more.

    ``rule(text)`` returns ranges ``[start, end)`` of code points, or a text of the same length, in which all
    code points that differ are masked. It runs in the recorder's thread, once for each different text of a
    trace, beside the built-in rules. When it raises or returns anything else, the text is masked whole.
    """
    _registered[:] = [] if rule is None else [rule]


@dataclass(frozen=True, slots=True, kw_only=True)
class Redactor:
    """What is masked. By default credentials are; personal data is not, because answers may be about it."""

    secrets: bool = True
    personal: bool = False
    own: tuple[OwnRule, ...] = ()  # beside the one given to ``redact_with``
    metadata_keys: frozenset[str] | None = None  # of the host's metadata only these are kept; None: all

    @classmethod
    def from_settings(cls, settings: "Settings | None") -> "Redactor":
        """As configured. Unreadable settings may have asked for anything: then all built-in rules apply."""
        if settings is None:
            return cls(personal=True)
        keys = settings.capture_metadata_keys
        return cls(
            secrets=settings.redact_secrets,
            personal=settings.redact_personal,
            own=() if settings.redact_with is None else (_load(settings.redact_with),),
            metadata_keys=None if keys is None else frozenset(keys),
        )

    def redact(
        self,
        trace: Trace,
        *,
        quiet: Collection[int] = (),
        between: Callable[[], None] = lambda: None,
    ) -> Trace:
        """The trace without what the rules find, offsets as they were, and a note of how much that was.

        ``quiet`` are positions of chunks for which ``is_quiet`` was said. ``between`` is called between two
        texts: a busy background thread steps aside there.
        """
        own = (*self.own, *_registered)
        if self.metadata_keys is not None:
            trace = _with_metadata(trace, self.metadata_keys)
        if not (self.secrets or self.personal or own):
            return trace
        if quiet and not (self.personal or own) and _is_quiet_elsewhere(trace, quiet):
            return trace
        rules = {**(SECRET_RULES if self.secrets else {}), **(PERSONAL_RULES if self.personal else {})}
        texts = _texts(trace, trace.chunks, [message.text for message in trace.prompt])
        if sum(map(len, texts)) <= _AT_ONCE:
            everything = "\n".join(texts)
            rules = {name: rule for name, rule in rules.items() if _may_find(name, everything)}
        masks = Masks(rules=rules, by_context=_BY_CONTEXT, own=own)
        if rules or own or any(texts.values()):
            between()
            for text, is_cut in texts.items():
                masks.look(text, is_cut)
                between()
            masks.spread()
        if not (masks.finds_anything or (self.secrets and _names_a_secret(trace, trace.chunks))):
            return trace  # nothing to hide, as nearly always: no record is made anew
        return _masked(trace, masks, hides_keys=self.secrets)


def is_quiet(chunk: Chunk) -> bool:
    """Whether the rules for credentials cannot find anything in a chunk, whatever stands around it."""
    texts = dict.fromkeys((chunk.text, chunk.source_id or ""), False)
    _add_strings(texts, chunk.metadata)
    everything = "\n".join(texts)
    return not (_has_secret_key(chunk.metadata) or any(_may_find(name, everything) for name in HINTS))


def _is_quiet_elsewhere(trace: Trace, quiet: Collection[int]) -> bool:
    """As ``is_quiet``, of a whole trace some of whose chunks are.

    Most of a prompt are its chunks. Of a quiet one only the ends count there: no hint reaches further.
    """
    known = [chunk for chunk in trace.chunks if chunk.position in quiet]
    others = [chunk for chunk in trace.chunks if chunk.position not in quiet]
    texts = _texts(trace, others, prompt=[_but_inside(message.text, known) for message in trace.prompt])
    if any(texts.values()) or sum(map(len, texts)) > _AT_ONCE:
        return False  # then each text is looked at, with a breath in between
    everything = "\n".join(texts)
    return not (_names_a_secret(trace, others) or any(_may_find(name, everything) for name in HINTS))


def _but_inside(text: str, chunks: Sequence[Chunk]) -> str:
    """The text without what is farther than ``FARTHEST`` from both ends of a chunk that stands in it."""
    parts, at = [], 0
    for start, end, _ in chunk_places(text, chunks):
        if end - start > 2 * FARTHEST:
            parts.append(text[at : start + FARTHEST])
            at = end - FARTHEST
    return "\n".join((*parts, text[at:])) if parts else text


def _may_find(name: str, everything: str) -> bool:
    try:
        return name not in HINTS or HINTS[name](everything)
    except Exception as error:
        counters.note_fault(error)
        return True  # then the rule itself looks


def _load(path: str) -> OwnRule:
    """The function at ``module:name``; when there is none, one that fails, so that all texts are masked."""
    try:
        module, _, name = path.partition(":")
        found: OwnRule = getattr(import_module(module), name)
        if not callable(found):
            raise TypeError
        return found
    except Exception as error:
        counters.warn(
            "redact_with",
            f"redact_with = {path!r} cannot be loaded ({type(error).__name__}), so every text is masked "
            "whole; write it as module:function",
        )
        return _nothing_passes


def _nothing_passes(text: str) -> str:
    raise LookupError("the configured redaction function cannot be loaded")


# The texts of a trace ------------------------------------------------------------


def _texts(trace: Trace, chunks: Sequence[Chunk], prompt: Sequence[str]) -> dict[str, bool]:
    """Every text of these that is redacted, in order, and whether its end was cut off anywhere."""
    cut = trace.truncated
    texts: dict[str, bool] = {}
    for name in ("question", "query", "answer", "generated", "error"):
        if text := getattr(trace, name):
            _add(texts, text, name in cut or (name == "error" and len(text) >= _CUT_ERROR))
    for index, text in enumerate(prompt):
        _add(texts, text, f"prompt[{index}]" in cut)
    for chunk in chunks:
        _add(texts, chunk.text, chunk.truncated_from is not None and chunk.truncated_from > len(chunk.text))
        if chunk.source_id:
            _add(texts, chunk.source_id, False)
        _add_strings(texts, chunk.metadata)
    for tag in trace.tags:
        _add(texts, tag, False)
    for key, entry in trace.metadata.items():
        noted: dict[str, bool] = {}
        _add_strings(noted, entry)
        for text in noted:
            _add(texts, text, key == _NOTES and len(text) >= _CUT_NOTE)
    if trace.session_id:
        _add(texts, trace.session_id, False)
    return texts


def _add(texts: dict[str, bool], text: str, is_cut: bool) -> None:
    texts[text] = is_cut or texts.get(text, False)


def _add_strings(texts: dict[str, bool], value: Any) -> None:
    """All texts inside a value, none of them cut. Loops, for this runs for every chunk of every trace."""
    if isinstance(value, str):
        texts.setdefault(value, False)
        return
    entries: Iterable[Any]
    if isinstance(value, _MAPPINGS):
        entries = value.values()
    elif isinstance(value, list):
        entries = value
    else:
        return
    for entry in entries:
        kind = type(entry)
        if kind is str:
            texts.setdefault(entry, False)
        elif kind not in _PLAIN:
            _add_strings(texts, entry)


def _names_a_secret(trace: Trace, chunks: Sequence[Chunk]) -> bool:
    """Whether a key of the metadata, of a trace and ``chunks``, asks for its value to be hidden."""
    return _has_secret_key(trace.metadata) or any(_has_secret_key(chunk.metadata) for chunk in chunks)


def _has_secret_key(value: Any) -> bool:
    if isinstance(value, _MAPPINGS):
        for key, entry in value.items():
            if _hides(key, entry) or (type(entry) not in _PLAIN and _has_secret_key(entry)):
                return True
    elif isinstance(value, list):
        for entry in value:
            if type(entry) not in _PLAIN and _has_secret_key(entry):
                return True
    return False


def _hides(key: str, entry: Json) -> bool:
    return isinstance(entry, str) and bool(entry) and _is_secret_key(key)


def _is_secret_key(key: str) -> bool:
    return _is_known_secret(key) if len(key) <= _SHORT_KEY else bool(_SECRET_KEY.search(key))


@lru_cache(maxsize=4_096)
def _is_known_secret(key: str) -> bool:
    """The same keys stand in every chunk of every trace."""
    return bool(_SECRET_KEY.search(key))


def _masked(trace: Trace, masks: Masks, *, hides_keys: bool) -> Trace:
    def optional(text: str | None) -> str | None:
        return None if text is None else masks(text)

    def chunk_of(chunk: Chunk) -> Chunk:
        return replace(
            chunk,
            text=masks(chunk.text),
            source_id=optional(chunk.source_id),
            metadata=_clean(chunk.metadata, masks, hides_keys),
        )

    metadata = _clean(trace.metadata, masks, hides_keys)
    note: dict[str, Json] = dict(sorted(masks.counts.items()))
    if masks.whole:
        note["masked whole"] = len(masks.whole)
    if note:
        notes = metadata.get(_NOTES)
        metadata[_NOTES] = {**(notes if isinstance(notes, dict) else {}), "masked": note}
    session = trace.session_id
    return replace(
        trace,
        question=masks(trace.question),
        query=optional(trace.query),
        chunks=tuple(chunk_of(chunk) for chunk in trace.chunks),
        prompt=tuple(Message(role=message.role, text=masks(message.text)) for message in trace.prompt),
        answer=masks(trace.answer),
        generated=optional(trace.generated),
        error=optional(trace.error),
        tags=tuple(masks(tag) for tag in trace.tags),
        # A masked name would make one session of many.
        session_id=session if session is None or masks(session) == session else None,
        metadata=metadata,
    )


def _clean(value: Mapping[str, Json], masks: Masks, hides_keys: bool) -> dict[str, Json]:
    cleaned = _clean_value(value, masks, hides_keys)
    assert isinstance(cleaned, dict)
    return cleaned


def _clean_value(value: Any, masks: Masks, hides_keys: bool) -> Json:
    if isinstance(value, str):
        return masks(value)
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN if hides_keys and _hides(key, entry) else _clean_value(entry, masks, hides_keys)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_clean_value(entry, masks, hides_keys) for entry in value]
    kept: Json = value
    return kept


def _with_metadata(trace: Trace, keys: frozenset[str]) -> Trace:
    """Of the host's metadata only what is on the list."""
    return replace(
        trace,
        metadata={key: value for key, value in trace.metadata.items() if key in keys or key == _NOTES},
        chunks=tuple(
            replace(chunk, metadata={key: value for key, value in chunk.metadata.items() if key in keys})
            for chunk in trace.chunks
        ),
    )
