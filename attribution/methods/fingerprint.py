"""The identity of a computation: two numbers may be compared only when method, settings and removal agree."""

import hashlib
import json

from ragblame.records import Method


def settings_hash(method: Method, **settings: bool | int | float | str | None) -> str:
    """First 12 hex digits of the SHA-256 over a method and everything that changes its numbers."""
    canonical = json.dumps({"method": method.value, **settings}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]
