"""The documents keep up with the code: every verdict, cause, setting, error and command has its line."""

import re
from pathlib import Path

import pytest

from ragblame import errors
from ragblame.records import Cause, VerdictKind
from ragblame.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def page(name: str) -> str:
    """The text of one page of documentation."""
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("cause", list(Cause))
def test_every_cause_is_documented(cause: Cause) -> None:
    """An on-call engineer finds each cause, as shown on the screen, in docs/verdicts.md."""
    assert f"| {cause.value} |" in page("docs/verdicts.md")


@pytest.mark.parametrize("verdict", list(VerdictKind))
def test_every_verdict_is_documented(verdict: VerdictKind) -> None:
    """Each verdict has its row in docs/verdicts.md."""
    assert f"| {verdict.value} |" in page("docs/verdicts.md")


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_every_setting_is_documented(name: str) -> None:
    """Each setting stands in docs/settings.md with its environment variable."""
    assert f"`{name}`" in page("docs/settings.md")
    assert f"`RAGBLAME_{name.upper()}`" in page("docs/settings.md")


def test_every_error_says_what_it_is() -> None:
    """Each class of the family carries a docstring: writing an error forces one to explain it."""
    family = [entry for entry in vars(errors).values() if isinstance(entry, type)]
    assert len(family) > 5
    assert all(entry.__doc__ and issubclass(entry, errors.RagblameError) for entry in family)


def test_links_between_documents_lead_somewhere() -> None:
    """No relative link in a document is broken."""
    broken = []
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            if "://" not in target and not (document.parent / target).exists():
                broken.append(f"{document.name}: {target}")
    assert broken == []
