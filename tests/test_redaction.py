"""Row 34: what redaction takes out of a trace, what it leaves, and that nothing passes where it fails."""

import dataclasses
import random
import string
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from pydantic import SecretStr

from ragblame import BlameHandler, flush, redact_with
from ragblame.attribution.alignment import align_chunks
from ragblame.plugin.counters import counters
from ragblame.plugin.personal_rules import cards, emails, ibans, phones
from ragblame.plugin.redaction import HINTS, PERSONAL_RULES, SECRET_RULES, Redactor
from ragblame.records import MASK, AlignmentState, Chunk, Json, Message, Trace
from ragblame.settings import Settings
from ragblame.trace_json import trace_to_json

# Put together here, so that no scanner of this repository takes them for real.
JWT = "eyJhbGciOiJIUzI1NiJ9" + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
PEM = (
    "-----BEGIN RSA "
    + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7bq\nabc+/DEF==\n-----END RSA "
    + "PRIVATE KEY-----"
)
TOKENS = (
    "AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1" * 18, "github_pat_" + "A1b2" * 8, "glpat-" + "x9_y8-z7" * 3,
    "xoxb-" + "1234567890-abcdef", "AIza" + "Sy0123456789abcdefghijklmnopqrstuv", "sk_live_" + "4eC39HqLyjWD",
    "sk-" + "proj-abc123DEF456ghi789", "sk-ant-" + "api03-0a1b2c3d4e5f6g7h", "hf_" + "a1B2c3D4e5F6g7H8i9",
    "npm_" + "0123456789abcdefABCDEF", "SG." + "abcdefghijklmnop.qrstuvwxyz012345",
    "dapi" + "0123456789abcdef" * 2, "lsv2_pt_" + "0123456789abcdef0123", "gsk_" + "0123456789abcdefgh", 
    "ya29." + "a0AfB_byC-0123456789xyz", "AGE-SECRET-KEY-1" + "QQ0123456789ABCDEFGH", 
    "123456789:AA" + "0123456789abcdefghijklmnopqrstu", JWT,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_own_rule() -> Iterator[None]:
    """Own rules are the process's: none is left to the next test."""
    yield
    redact_with(None)


def trace_of(**fields: Any) -> Trace:
    """A trace with these fields."""
    given = {
        "id": UUID(int=1 << 76),
        "app": "t",
        "question": "q",
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return Trace(**{**given, **fields})


def masked(text: str, **options: Any) -> str:
    """What becomes of an answer."""
    shown = Redactor(**options).redact(trace_of(answer=text)).answer
    assert len(shown) == len(text)
    return shown


def hidden(text: str, **options: Any) -> list[str]:
    """The parts of an answer that are masked, in order."""
    shown, parts, last = masked(text, **options), [], -2
    for at, char in enumerate(shown):
        if char == MASK:
            if at != last + 1:
                parts.append("")
            parts[-1] += text[at]
            last = at
        else:
            assert char == text[at]
    return parts


ALL = {"secrets": True, "personal": True}


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize(
    "around", ["{}", "key {}, then", '{{"k": "{}"}}', "https://x.io/a?k={}&b=1", "重启{}服务"]
)
def test_tokens_of_known_shape_are_masked(token: str, around: str) -> None:
    """Each vendor's token is masked whole, and nothing beside it, wherever it stands."""
    assert hidden(around.format(token)) == [token]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("password=hunter2", "hunter2"),
        ("PGPASSWORD=postgres psql", "postgres"),
        ('{"db_password": "correct horse battery"}', "correct horse battery"),
        ('"{\\"password\\": \\"s3cr3t\\"}"', "s3cr3t"),
        ("passwd: 'tr0ub4dor&3'", "tr0ub4dor&3"),
        ("  password: swordfish\n  user: bob", "swordfish"),
        ("export API_KEY=abcd1234efgh", "abcd1234efgh"),
        ("api-key: 0123456789abcdef", "0123456789abcdef"),
        ("client_secret => 'p@ss:word/1'", "p@ss:word/1"),
        ("Authorization: Bearer abcDEF123.ghi-jkl", "abcDEF123.ghi-jkl"),
        ('-H "authorization: Basic dXNlcjpwYXNz"', "dXNlcjpwYXNz"),
        ("postgresql://bob:s3cr3t@db.example:5432/x", "s3cr3t"),
        ("GET /v1?token=abc123def456&user=7", "abc123def456"),
        ("AccountKey=Zm9vYmFyMTIzNDU2Nzg5MA==;EndpointSuffix=x", "Zm9vYmFyMTIzNDU2Nzg5MA=="),
        ("The default password is admin123.", "admin123"),
        ("Das Passwort: geheim7", "geheim7"),
        ("密码 password=秘密钥匙七", "秘密钥匙七"),
    ],
)
def test_named_secrets_are_masked(text: str, secret: str) -> None:
    """What stands behind a credential's name is masked, the name stays."""
    assert "".join(hidden(text)) == secret.replace(" ", "")
    assert masked(text).startswith(text[: text.index(secret)])


def test_private_keys_are_masked_with_their_frame() -> None:
    """A PEM key goes line by line, white space stays; one without an end goes to the end of the text."""
    shown = masked(f"before\n{PEM}\nafter")
    assert "".join(shown.split()) == "before" + MASK * len("".join(PEM.split())) + "after"
    assert shown.count("\n") == 5
    assert masked(f"x {PEM[:60]}").strip(f"{MASK} \n") == "x"
    public = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----"
    assert masked(public) == public


@pytest.mark.parametrize(
    "text",
    [
        "The token limit is 4096 and max_tokens=512; password: must have 12 characters.",
        "password=${DB_PASSWORD} password: <your password> api_key=None secret=**** token: {{ token }}",
        "token = get_token(user)\nkey: value\nprimary_key: id",
        "A risk-based approach: task-oriented-scheduling-for-2024 and ask-me-anything-session-1.",
        "commit 3b18e512dba79e4c8300dd08aeb37f8e728b8dad, id 0193a7c2-1f6e-7c3a-9b1e-2f4d5a6b7c8d",
        "See https://example.com:8443/path?page=2#sec and file:///etc/passwd",
        "The password is required. The password is case-sensitive?",
        "Restart at 02:30 on 2024-01-02; 10.0.0.1:5432, v1.2.3, 12 345.67 EUR, ISBN 978-3-16-148410-0",
        "Order 4111111111111112, ticket 1234567890123, DE00 1234 5678 9012 3456 78, 5/6/2024 10:30:15",
        "user@localhost, @mention, a@b, 3 @ 5 each, foo@.com",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    """Placeholders, code, identifiers, dates and versions are no secrets, and wrong check digits no cards."""
    assert hidden(text, **ALL) == [], hidden(text, **ALL)


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        (emails, "Write to jane.doe+x@mail.example.co.uk, or <bob@example.org>.", 2),
        (emails, "Ä: müller@bücher.example und 名前@例え.jp", 2),
        (phones, "Call +49 30 901820 or (030) 123456-78, 030 1234567.", 3),
        (phones, "US: 555-123-4567, (555) 123-4567, +1 (555) 123-4567, 1-800-555-0199", 4),
        (phones, "FR 01 23 45 67 89; UK 020 7946 0958; mobil 0170/1234567; 0049 30 901820", 4),
        (cards, "4111 1111 1111 1111, 5500-0000-0000-0004, 378282246310005, 3782 822463 10005 12/27", 4),
        (ibans, "DE89 3704 0044 0532 0130 00, GB82WEST12345698765432, FR1420041010050500013M02606 SEPA", 3),
        (ibans, "ES91 2100 0418 4502 0005 1332 THEN pay", 1),
    ],
)
def test_personal_data_is_found(rule: Callable[[str], Any], text: str, found: int) -> None:
    """Usual forms of addresses, numbers, cards and accounts are found, and nothing around them."""
    spans = list(rule(text))
    assert len(spans) == found, [text[a:b] for a, b in spans]
    assert all(not text[a].isspace() and not text[b - 1].isspace() for a, b in spans)


def test_personal_data_stays_unless_asked_for() -> None:
    """An address may be the answer: by default only credentials are masked, and both can be switched."""
    text = "Ask bob@example.org, the password=hunter2 is his."
    assert hidden(text) == ["hunter2"]
    assert hidden(text, personal=True) == ["bob@example.org", "hunter2"]
    assert hidden(text, secrets=False, personal=True) == ["bob@example.org"]
    assert hidden(text, secrets=False) == []


def test_one_text_tells_what_the_others_hide() -> None:
    """A secret known from a chunk is masked in question, prompt, answer, metadata; alignment stays exact."""
    chunk = "The db password=hunter2 is rotated weekly by the platform team."
    trace = trace_of(
        question="Is it hunter2?",
        chunks=(Chunk(position=0, text=chunk, metadata={"note": "old: hunter2", "n": 3}),),
        prompt=(
            Message(role="system", text=f"Context:\n- {chunk}\n"),
            Message(role="human", text="hunter2 ok?"),
        ),
        answer="Yes, hunter2's fine; hunter22 is not. 密码是hunter2吗",
        generated="hunter2",
        error="KeyError: hunter2",
        tags=("hunter2",),
        metadata={"deep": [{"x": "hunter2"}]},
    )
    shown = Redactor().redact(trace)
    text = str(dataclasses.asdict(shown))
    assert "hunter2 " not in text
    assert "hunter2'" not in text
    assert shown.answer == f"Yes, {MASK * 7}'s fine; hunter22 is not. 密码是{MASK * 7}吗"
    assert shown.metadata["deep"] == [{"x": MASK * 7}]
    assert shown.metadata["ragblame"] == {"masked": {"named secret": 2}}
    before, after = align_chunks(trace.chunks, trace.prompt), align_chunks(shown.chunks, shown.prompt)
    assert before == after
    assert after[0].state is AlignmentState.EXACT


@pytest.mark.parametrize("text", ['token: "The pumppassword=hunter2', "x_token: $password=hunter2"])
def test_a_value_that_is_no_secret_does_not_hide_one(text: str) -> None:
    """An open quote or a placeholder behind one name must not swallow the next name and its secret."""
    assert "hunter2" not in Redactor().redact(trace_of(question="", answer=text)).answer


pieces = st.sampled_from(
    ["The pump", " is ", "é", "日本", "😀", "\u202e", "password=hunter2", " ", "\n", JWT, "bob@example.org",
     "\x00", "+49 30 901820", "4111 1111 1111 1111", "token: ", "://a:b@", "=", ":", '"', "\\", "\ud800",
     PEM, "sk-", "@"]
)  # fmt: skip


@given(st.lists(pieces, max_size=30).map("".join), st.lists(pieces, max_size=5).map("".join))
@settings(max_examples=300, deadline=None)
def test_masks_keep_every_offset(text: str, extra: str) -> None:
    """Of any text the length, the white space and all that is not masked stay as they were."""
    trace = trace_of(
        question=extra,
        answer=text,
        chunks=(Chunk(position=0, text=text),),
        prompt=(Message(role="p", text=extra + text),),
    )
    shown = Redactor(personal=True).redact(trace)
    for before, after in (
        (text, shown.answer), (text, shown.chunks[0].text), (extra + text, shown.prompt[0].text)
    ):  # fmt: skip
        assert len(before) == len(after)
        assert all(a == b or (a == MASK and not b.isspace()) for a, b in zip(after, before, strict=True))
    assert "hunter2" not in str(shown.answer)
    assert JWT not in shown.answer


@given(
    st.lists(
        st.sampled_from(["pump ", "valve ", "日本 ", "\n", "é", "password=hunter2 "]),
        min_size=20,
        max_size=80,
    )
)
@settings(max_examples=100, deadline=None)
def test_masking_never_moves_a_chunk(words: list[str]) -> None:
    """Chunks stand where they stood, whatever was masked in them."""
    text = "start " + "".join(words) + " end"
    chunks = (Chunk(position=0, text=text), Chunk(position=1, text="The second chunk says hunter2."))
    prompt = (Message(role="p", text=f"1. {text}\n2. {chunks[1].text}\nQuestion?"),)
    shown = Redactor().redact(trace_of(chunks=chunks, prompt=prompt))
    before, after = align_chunks(chunks, prompt), align_chunks(shown.chunks, shown.prompt)
    assert [(a.state, a.start, a.end) for a in before] == [(a.state, a.start, a.end) for a in after]


# Failing closed ------------------------------------------------------------


def raises(text: str) -> list[tuple[int, int]]:
    raise ZeroDivisionError(text)


def leaves(text: str) -> list[tuple[int, int]]:
    raise SystemExit(text)


@pytest.mark.parametrize(
    "rule",
    [
        raises,
        leaves,
        lambda text: text[:-1],
        lambda text: None,
        lambda text: 7,
        lambda text: [(0, len(text) + 1)],
        lambda text: [(-3, -1)],
        lambda text: [(2, 1)],
        lambda text: [(0, 1, 2)],
        lambda text: [("0", "1")],
        lambda text: [(0.0, 1.0)],
        lambda text: (span for span in [(0, 1), 1 / 0]),
    ],
)
def test_a_failing_rule_masks_the_text_whole(rule: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Row 34: an exception, a wrong length or senseless ranges hide all of the text, and are counted."""
    counters.after_fork()
    redact_with(rule)
    shown = Redactor().redact(trace_of(question="who?", answer="plain words", tags=("a b",)))
    assert shown.question == MASK * 4
    assert shown.answer == MASK * 11
    assert shown.tags == (MASK * 3,)
    assert counters.snapshot()["redaction_faults"] == 3
    notes = shown.metadata["ragblame"]
    assert isinstance(notes, dict)
    assert notes["masked"] == {"masked whole": 3}
    assert "plain words" not in caplog.text
    assert "masked whole" in caplog.text
    aligned = align_chunks((Chunk(position=0, text=MASK * 200),), (Message(role="p", text=MASK * 900),))
    assert aligned[0].state is AlignmentState.MISSING


HINTING = (
    *(
        "-----BEGIN RSA PRIVATE " + "KEY-----",
        "-----END RSA PRIVATE " + "KEY-----",
        "https://u:",
        "hunter2",
        "@h",
    ),
    *(
        "AKIA" + "Q7" * 8,
        "ghp_" + "a1" * 12,
        "eyJhbGciOiJ" + ".eyJzdWIiOiIx.abc",
        "sk-" + "a1" * 12,
        "é",
        "\n",
    ),
    *("password=", "api_key: ", '"', "Bearer ", "authorization: ", "The password is ", "PIN is ", "12345678"),
    *(
        "passphrase is ",
        "the passcode is ",
        "hooks.slack.com/services/",
        "T0/B0/" + "z9" * 9,
        "\ud800",
        "\x1f",
    ),
    *(" ", "x", "=>", "\u00a0", "\u3000"),
)


@pytest.mark.parametrize("name", [*SECRET_RULES, *PERSONAL_RULES])
def test_a_failing_built_in_rule_fails_closed_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours in any single rule hides the text, it does not let it pass."""
    rules = SECRET_RULES if name in SECRET_RULES else PERSONAL_RULES
    monkeypatch.setitem(rules, name, raises)
    text = "-----BEGIN :// words that every rule looks at, assword is never-so-plain-at-all, token: "
    assert masked(text, **ALL) == MASK * len(text)


@given(st.lists(st.sampled_from(HINTING), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_rule_is_skipped_that_would_find_something(text: str) -> None:
    """What tells that a rule need not look is true of every text in which the rule finds anything."""
    for name, rule in SECRET_RULES.items():
        if list(rule(text)):
            assert HINTS[name](f"before\n{text}\nafter")


def test_a_failing_hint_lets_the_rule_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortcut fails closed as well."""
    monkeypatch.setitem(HINTS, "password in a URL", raises)
    assert hidden("see https://me:hunter2@host/x") == ["hunter2"]


def test_a_trace_without_secrets_is_the_same_object() -> None:
    """Nothing to hide, nothing made anew; a key that names a secret, or a cut end, is something to hide."""
    plain = trace_of(answer="The port is 2959.", chunks=(Chunk(position=0, text="It is 2959."),))
    assert Redactor().redact(plain) is plain
    for named in (
        dataclasses.replace(plain, metadata={"deep": {"list": [{"api_key": "x"}]}}),
        dataclasses.replace(plain, chunks=(Chunk(position=0, text="a", metadata={"password": "b"}),)),
        dataclasses.replace(plain, metadata={"p" * 200 + "password": "c"}),
        dataclasses.replace(plain, truncated={"answer": 900}),
    ):
        assert MASK in repr(Redactor().redact(named))


def test_an_own_rule_says_ranges_or_a_text() -> None:
    """Ranges and same-length texts mask alike, everywhere in the trace; letters equal by chance too."""

    def ranges(text: str) -> list[tuple[int, int]]:
        at = text.find("ACME-XAX-1")
        return [] if at < 0 else [(at, at + 10)]

    def same_length(text: str) -> str:
        return text.replace("ACME-XAX-1", "X" * 10)

    for rule in (ranges, same_length):
        redact_with(rule)
        assert hidden("for ACME-XAX-1, please") == ["ACME-XAX-1"]
        shown = Redactor(secrets=False).redact(trace_of(question="ACME-XAX-1?", answer="nothing"))
        assert (shown.question, shown.answer) == (MASK * 10 + "?", "nothing")
    redact_with(None)
    assert hidden("for ACME-XAX-1, please") == []


def test_a_text_that_was_cut_loses_its_last_word() -> None:
    """Half a secret has no shape: the word that was cut at capture is masked, in chunks and everywhere."""
    trace = trace_of(
        question="tell sk-proj-ab",
        answer="whole sk-proj-ab",
        chunks=(Chunk(position=0, text="tail ghp_12", truncated_from=400),),
        truncated={"question": 900},
    )
    shown = Redactor().redact(trace)
    assert shown.question == "tell " + MASK * 10
    assert shown.chunks[0].text == "tail " + MASK * 6
    assert shown.answer == "whole sk-proj-ab"


def test_metadata_is_an_allow_list_and_hides_credentials_by_name() -> None:
    """Only listed keys stay; under a credential's name nothing is readable, at any depth."""
    metadata: dict[str, Json] = {
        "source": "a.md",
        "conn": {"password": "x", "Api-Key": "y", "port": 5432, "token_count": "12"},
        "n": 1,
    }
    trace = trace_of(metadata=metadata, chunks=(Chunk(position=0, text="c", metadata=metadata),))
    shown = Redactor().redact(trace)
    assert shown.metadata["conn"] == {
        "password": MASK * 8, "Api-Key": MASK * 8, "port": 5432, "token_count": "12"
    }  # fmt: skip
    assert shown.chunks[0].metadata == shown.metadata
    listed = Redactor(metadata_keys=frozenset({"source"})).redact(trace)
    assert listed.metadata == listed.chunks[0].metadata == {"source": "a.md"}
    assert Redactor(secrets=False).redact(trace) == trace


def test_identities_are_not_merged() -> None:
    """A session named by an address is dropped rather than merged with others; a row's id keeps its form."""
    trace = trace_of(
        session_id="bob@example.org", chunks=(Chunk(position=0, text="c", source_id="postgres://u:pw77@h/1"),)
    )
    shown = Redactor(personal=True).redact(trace)
    assert shown.session_id is None
    assert shown.chunks[0].source_id == f"postgres://u:{MASK * 4}@h/1"
    assert Redactor().redact(trace).session_id == "bob@example.org"


def test_settings_choose_the_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings switch rules and name an own one; where they cannot be read, everything built in applies."""
    text = "bob@example.org password=hunter2"

    def with_settings(**fields: Any) -> str:
        return Redactor.from_settings(Settings(**fields)).redact(trace_of(answer=text)).answer

    assert with_settings() == f"bob@example.org password={MASK * 7}"
    assert with_settings(redact_personal=True) == f"{MASK * 15} password={MASK * 7}"
    assert with_settings(redact_secrets=False) == text
    assert Redactor.from_settings(None).redact(trace_of(answer=text)).answer == with_settings(
        redact_personal=True
    )
    monkeypatch.setenv("RAGBLAME_CAPTURE_METADATA_KEYS", '["source"]')
    assert Redactor.from_settings(Settings()).metadata_keys == frozenset({"source"})
    assert with_settings(redact_with="tests.test_redaction:hide_bob", redact_secrets=False).startswith(
        MASK * 3 + "@"
    )
    for wrong in ("no_such_module:f", "json:no_such_name", "json", "json:__name__"):
        assert with_settings(redact_with=wrong) == MASK * len(text)


def hide_bob(text: str) -> list[tuple[int, int]]:
    """An own rule that a setting names."""
    return [(text.index("bob"), text.index("bob") + 3)] if "bob" in text else []


# Cost ------------------------------------------------------------

HOSTILE = {
    "equals": "=" * 100_000,
    "password=": "password=" * 11_000 + "(",
    "quotes": 'password="' * 10_000,
    "colons": "password: '" * 9_000 + "x",
    "at signs": "@" * 100_000,
    "addresses": "a@b." * 25_000,
    "dots": "a@" + "b." * 50_000 + "1",
    "long local": ("a" * 63 + "@") * 1_500,
    "digits": "1" * 100_000,
    "spaced digits": "1 " * 50_000,
    "grouped digits": "4111 1111 1111 111 " * 5_000,
    "pluses": "+1" * 50_000,
    "parentheses": "(1" * 50_000,
    "zeros": "0 00 " * 20_000,
    "IBANs": "AA00 " * 20_000,
    "capitals": "AA00" * 25_000,
    "sk": "sk-" * 33_000,
    "eyJ": "eyJ" * 33_000,
    "eyJ.": "eyJaaaaaaaa." * 8_000,
    "SG": "SG." * 33_000,
    "begin": "-----BEGIN " * 9_000,
    "begin key": ("-----BEGIN " + "PRIVATE KEY-----") * 3_700,
    "urls": "://a:" * 20_000,
    "urls at": "://a:b@" * 14_000,
    "said": "password is " * 8_300,
    "backslashes": 'password\\": \\"' * 7_000,
    "telegram": "123456789:AA" * 8_300,
    "authorization": "authorization: bearer " * 4_500,
    "spaces": " " * 100_000,
    "CJK": "密码是" * 33_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_makes_a_rule_slow(name: str) -> None:
    """100 kB made to trap each rule: linear, so far below what backtracking would take."""
    text = HOSTILE[name]
    for rule_name, rule in {**SECRET_RULES, **PERSONAL_RULES}.items():
        began = time.process_time()
        list(rule(text))
        assert time.process_time() - began < 0.5, f"{rule_name} on {name}"  # measured 0.08 s at most


def test_many_secrets_cost_no_more_than_few() -> None:
    """A dump of a thousand passwords, repeated in the prompt, is masked in linear time."""
    rng = random.Random(2)
    words = ["".join(rng.choices(string.ascii_lowercase + string.digits, k=9)) + "7" for _ in range(1_000)]
    dump = "\n".join(f"password={word}" for word in words)
    trace = trace_of(
        chunks=(Chunk(position=0, text=dump),), prompt=(Message(role="p", text=" ".join(words * 20)),)
    )
    began = time.process_time()
    shown = Redactor(personal=True).redact(trace)
    assert time.process_time() - began < 3  # measured 0.2 s
    assert set(shown.prompt[0].text) == {MASK, " "}


# The whole way ------------------------------------------------------------


def chain_with(secret: str) -> Runnable[Any, Any]:
    """A chain whose chunk, prompt and answer hold the secret."""
    documents = [Document(id="7", page_content=f"The db password={secret}", metadata={"apikey": secret})]
    prompt = ChatPromptTemplate.from_template("Context: {context}\nQuestion: {question}")
    return (
        RunnablePassthrough.assign(documents=RunnableLambda(lambda _: documents))
        | RunnablePassthrough.assign(context=lambda x: x["documents"][0].page_content)
        | prompt
        | FakeListChatModel(responses=[f"It is {secret}."])
    )


def test_neither_database_nor_spool_nor_sink_ever_sees_a_secret(
    connection: psycopg.Connection[Any], database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 34: captured through a real chain, a secret is in no row, no spool file and no sink's trace."""
    from ragblame.plugin.recorder import Recorder, install

    for away in (False, True):
        url = "postgresql://nobody@127.0.0.1:9/none" if away else database_url
        recorder = Recorder(partial(Settings, database_url=SecretStr(url), data_dir=data_dir))
        before = install(recorder)
        try:
            chain_with("hunter2-Zq81").invoke(
                {"question": "Is it hunter2-Zq81?"}, config={"callbacks": [BlameHandler(app="x")]}
            )
            flush(20)
        finally:
            recorder.close(20)
            install(before)
    rows = connection.execute("SELECT row_to_json(t)::text FROM ragblame.trace t").fetchall()
    texts = connection.execute("SELECT text FROM ragblame.chunk_text").fetchall()
    chunks = connection.execute("SELECT row_to_json(c)::text FROM ragblame.trace_chunk c").fetchall()
    assert len(rows) == len(texts) == len(chunks) == 1
    stored = str((rows, texts, chunks))
    assert "hunter2" not in stored
    assert MASK * 12 in stored
    files = [path for path in (data_dir / "spool").rglob("*") if path.is_file()]
    spooled = b"".join(path.read_bytes() for path in files)
    assert b"Context: " in spooled, "the second trace waits on the spool"
    assert b"hunter2" not in spooled
    seen: list[Trace] = []
    chain_with("hunter2-Zq81").invoke(
        {"question": "?"}, config={"callbacks": [BlameHandler(sink=seen.append)]}
    )
    flush(20)
    assert "hunter2" not in str(trace_to_json(seen[0]))
