"""Finds credentials in text: private keys, tokens of known shape, and what stands behind "password =".

Each rule yields ``[start, end)`` in code points. All are linear: places are found by ``str`` searches at
memory speed, and expressions only look at what follows such a place, once.
"""

import re
from collections.abc import Iterator
from typing import Final

from ragblame.trace_records import MASK

_LONG: Final = 16  # code points of the shortest token worth looking at
LOOKS_INSIDE: Final = 256  # values that are no secret and are read again for one inside: keeps it linear
_LONG_RUN: Final = b"x" * _LONG
_BLANK_OR_NOT: Final = bytes(
    ord(" ") if byte < 128 and chr(byte).isspace() else ord("x") for byte in range(256)
)
_NEAR: Final = 48  # code points before "=" that may name a credential

# Beginnings that vendors reserve for their keys, and what follows.
_VENDORS: Final = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{20,}", r"github_pat_\w{20,}", r"gl(?:pat|dt|rt|soat|cbt|ptt)-[\w\-]{16,}",
    r"xox[abeoprs]-[\w\-]{10,}", r"xapp-[\w\-]{10,}",  # Slack
    r"AIza[\w\-]{30,}", r"ya29\.[\w\-.]{20,}", r"GOCSPX-[\w\-]{20,}",  # Google
    r"[srp]k_(?:live|test)_\w{10,}", r"whsec_\w{16,}",  # Stripe
    r"SG\.[\w\-]{16,}\.[\w\-]{16,}", r"dapi[0-9a-f]{32}", r"AGE-SECRET-KEY-1[A-Z0-9]{20,}",
    r"\d{8,10}:AA[\w\-]{30,}",  # Telegram
)  # fmt: skip
_VENDOR: Final = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_VENDORS)})", re.ASCII)
# Beginnings that ordinary words share ("sk-learn-…"): a key of these has a digit.
_LOOSE: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:[sp]k-[\w\-]{16,}"  # OpenAI, Anthropic, Langfuse, DeepSeek and many after them
    r"|(?:gsk|hf|r8|npm|lsv2_pt|lsv2_sk|shpat|shpss|shpca|dckr_pat|dop_v1|doo_v1|dor_v1|figd|sntrys|glsa|rnd)"
    r"_\w{16,}|(?:nvapi|pplx|xai|tvly|tskey|pypi|pcsk|esecret)-[\w\-]{16,})",
    re.ASCII,
)
_JWT: Final = re.compile(r"(?<![A-Za-z0-9])eyJ[\w\-]{8,}\.[\w\-]*(?:\.[\w\-]*){0,3}", re.ASCII)
_TOKEN: Final = re.compile(rf"[\w\-.:]{{{_LONG},}}", re.ASCII)
_HOOK: Final = re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/([\w/\-]{16,})", re.ASCII)

_KEY_HEAD: Final = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_KEY_TAIL: Final = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
_USERINFO: Final = re.compile(r"[^\s/@:\"'<>]*:([^\s/@\"'<>]+)@")

_PASSWORDS: Final = (
    "password", "passwort", "passwd", "passphrase", "passcode", "pwd", "_pass", " pass", "-pass", '"pass',
    "'pass", "\npass",
)  # fmt: skip
_SECRETS: Final = ("secret", "credential", "credentials")
_KEYS: Final = (
    "api_key", "api-key", "apikey", "api key", "access_key", "access-key", "accesskey", "access key",
    "secret_key", "secret-key", "secretkey", "secret key", "private_key", "private-key", "privatekey",
    "account_key", "accountkey", "signing_key", "encryption_key", "master_key", "sharedaccesskey", "token",
    "auth_key", "authkey", "license_key", "sig",
)  # fmt: skip
_NAMES: Final = (*_PASSWORDS, *_SECRETS, *_KEYS, "authorization", "cookie")
_VALUE: Final = re.compile(
    r"[ \t]*(?:\\?(?P<quote>[\"'`])(?P<quoted>(?:(?!(?P=quote))[^\n\\])+)"
    r"|(?P<bare>[^\s\"'`,;<>(){}\[\]\\|]+))"
)
_SCHEME: Final = re.compile(
    r"\s*[\"']?(?:Bearer|Basic|Token|ApiKey|Digest)\s+([^\s\"',;<>\\]+)", re.IGNORECASE
)
_PLAIN: Final = re.compile(
    rf"(?:[*xX•.…_\-{MASK}]+|\$.*|<.*|\{{.*|%.*|none|null|nil|true|false|undefined|redacted|hidden|required|"
    r"optional|string|str|text|n/a)",
    re.IGNORECASE,
)
_SAID: Final = ("assword is ", "assword was ", "assphrase is ", "asscode is ", "assword: ", "PIN is ")
_SAID_VALUE: Final = re.compile(r"(?:now |set to |still )?(?P<quote>[\"'`“‘]?)(?P<word>[^\s\"'`”’,;<>()]+)")
_OPENING: Final = " \t\"'`\\"


def may_hold_private_keys(text: str) -> bool:
    """Whether ``private_keys`` can find anything in any part of a text: one look at all texts of a trace."""
    return "-----BEGIN " in text


def may_hold_tokens(text: str) -> bool:
    """As above, for ``tokens``: a long run without white space; ASCII's, so that one search tells."""
    return _LONG_RUN in text.encode("utf-8", "surrogatepass").translate(_BLANK_OR_NOT)


def may_hold_url_passwords(text: str) -> bool:
    """As above, for ``url_passwords``."""
    return "://" in text


def may_hold_named_secrets(text: str) -> bool:
    """As above, for ``named_secrets``: a separator with a credential's name before it."""
    return any(_name_before(text, at).endswith(_NAMES) for at in _separators(text))


def may_hold_said_passwords(text: str) -> bool:
    """As above, for ``said_passwords``."""
    return ("ass" in text and any(words in text for words in _SAID)) or "PIN is " in text


def private_keys(text: str) -> Iterator[tuple[int, int]]:
    """PEM private keys with their frame; without an end, to the end of the text."""
    at = text.find("-----BEGIN ")
    while at >= 0:
        head = _KEY_HEAD.match(text, at)
        end = at + 1
        if head is not None:
            tail = _KEY_TAIL.search(text, head.end())
            end = tail.end() if tail else len(text)
            yield at, end
        at = text.find("-----BEGIN ", end)


def tokens(text: str) -> Iterator[tuple[int, int]]:
    """Tokens whose shape says whose they are: vendors' API keys, JSON web tokens, Slack's web hooks."""
    at = 0
    for word in text.split():
        if len(word) < _LONG:
            continue
        found = _in_word(word)
        if found:
            at = text.index(word, at)
            yield from ((at + start, at + end) for start, end in found)
            at += len(word)


def _in_word(word: str) -> list[tuple[int, int]]:
    found = []
    for token in _TOKEN.finditer(word):
        for rule in (_JWT, _VENDOR):
            found += [match.span() for match in rule.finditer(word, token.start(), token.end())]
        for match in _LOOSE.finditer(word, token.start(), token.end()):
            if any(map(str.isdigit, match[0])):
                found.append(match.span())
    if "hooks.slack.com/" in word:
        found += [match.span(1) for match in _HOOK.finditer(word)]
    return found


def url_passwords(text: str) -> Iterator[tuple[int, int]]:
    """The password of ``scheme://user:password@host``."""
    at = text.find("://")
    while at >= 0:
        match = _USERINFO.match(text, at + 3)
        if match is not None and not _PLAIN.fullmatch(match[1]):
            yield match.span(1)
        at = text.find("://", at + 3)


def named_secrets(text: str) -> Iterator[tuple[int, int]]:
    """What follows a credential's name: ``password=…``, ``"api_key": "…"``, ``Authorization: Bearer …``."""
    done, looks = 0, LOOKS_INSIDE
    for at in _separators(text):
        if at < done:
            continue
        name = _name_before(text, at)
        if not name.endswith(_NAMES):
            continue
        start = at + (2 if text.startswith(("=>", "==", ":="), at) else 1)
        found = _value(text, start, at, name)
        if found is None:
            continue
        if found[2]:
            yield found[0], found[1]
        elif looks:  # no secret itself, yet one may stand inside: token: "… password=hunter2"
            looks -= 1
            continue
        done = max(found[1], start)


def said_passwords(text: str) -> Iterator[tuple[int, int]]:
    """ "The password is hunter2": a word with a digit, a sign or in quotes behind such words."""
    for words in _SAID:
        at = text.find(words)
        while at >= 0:
            match = _SAID_VALUE.match(text, at + len(words))
            if match is not None:
                start = match.start("word")
                word = match["word"].rstrip(".!?:")
                is_odd = any(not char.isalpha() and char not in "-./" for char in word)
                if len(word) >= 4 and (is_odd or match["quote"]) and not _PLAIN.fullmatch(word):
                    yield start, start + len(word)
            at = text.find(words, at + len(words))


def _name_before(text: str, at: int) -> str:
    return text[max(0, at - _NEAR) : at].rstrip(_OPENING).lower()


def _separators(text: str) -> Iterator[int]:
    """Places of "=" and ":" in order."""
    equals, colon = text.find("="), text.find(":")
    while equals >= 0 or colon >= 0:
        if colon < 0 or 0 <= equals < colon:
            yield equals
            equals = text.find("=", equals + 1)
        else:
            yield colon
            colon = text.find(":", colon + 1)


def _value(text: str, start: int, at: int, name: str) -> tuple[int, int, bool] | None:
    """Start and end of the value behind a credential's name, and whether it is one; None: nothing there."""
    if name.endswith("authorization"):
        scheme = _SCHEME.match(text, start)
        if scheme is not None:
            return *scheme.span(1), not _PLAIN.fullmatch(scheme[1])
    match = _VALUE.match(text, start)
    if match is None:
        return None
    group = "bare" if match["quoted"] is None else "quoted"
    low, high = match.span(group)
    if group == "bare" and "&" in match[group] and _is_query(text, at):
        high = low + match[group].index("&")
    value = text[low:high].rstrip(".") if group == "bare" else text[low:high]
    return low, low + len(value), _is_secret(text, value, low, group == "quoted", at, name)


def _is_query(text: str, at: int) -> bool:
    """Whether the name before ``at`` is a parameter of a URL."""
    return re.search(r"[?&][\w.\-]*$", text[max(0, at - _NEAR) : at]) is not None


def _is_secret(text: str, value: str, low: int, is_quoted: bool, at: int, name: str) -> bool:
    end = low + len(value)
    if len(value) < 3 or _PLAIN.fullmatch(value) or (not is_quoted and text[end : end + 1] in ("(", "[")):
        return False  # a placeholder, or a call in source code
    has_digit, has_letter = any(map(str.isdigit, value)), any(map(str.isalpha, value))
    is_mixed = has_digit and has_letter
    if name.endswith(_KEYS):
        return len(value) >= 8 and (is_mixed or len(value) >= 20) and " " not in value
    if is_quoted or text[at] == "=" or name.endswith(("authorization", "cookie")):
        return True
    if (is_mixed or not value.isalnum()) and len(value) >= 4:
        return True
    # "password: hunter" alone on its line is a setting, "password: must be long" is prose.
    line = text.rfind("\n", 0, at) + 1
    rest = text[end : end + 200].partition("\n")[0]
    return len(text[line:at].split()) <= 2 and not rest.strip()
