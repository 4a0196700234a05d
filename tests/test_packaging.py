"""The wheel holds exactly the source, the pins are bare, and the project's own rules about its files hold."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = {".py", ".sql", ".css", ".js", ".typed"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]


def tracked() -> list[Path]:
    """The files git tracks; a wheel user has no git, so the check is for checkouts only."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built once from a copy of the tree by the build backend the project names."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    """A forgotten nested package works in an editable install and is missing from the wheel."""
    wanted = set()
    for name, folder in FOLDERS.items():
        source = ROOT / folder
        files = source.iterdir() if name == "ragblame" else source.rglob("*")
        for path in files:
            is_model = path.parent.name == "model" or (path.suffix == ".json" and "verdicts" in path.parts)
            if path.is_file() and "__pycache__" not in path.parts and (path.suffix in SHIPPED or is_model):
                wanted.add(f"{name.replace('.', '/')}/{path.relative_to(source).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("ragblame/")}
    assert held == wanted


def test_wheel_ships_a_small_model(wheel: Path) -> None:
    """The shipped model and tokenizer stay under 12 MB together."""
    with zipfile.ZipFile(wheel) as archive:
        sizes = [info.file_size for info in archive.infolist() if "/world/model/" in info.filename]
    assert sizes
    assert sum(sizes) < 12_000_000


def test_pins_are_bare() -> None:
    """constraints.txt names no address, local build or folder, and pins torch for every platform."""
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines), lines
    assert "torch==2.13.0" in lines


def test_every_dependency_is_pinned() -> None:
    """What pyproject asks for by default and in `dev` stands in constraints.txt."""
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    }
    extras = PROJECT["project"]["optional-dependencies"]
    asked = list(PROJECT["project"]["dependencies"])
    for extra in ("attribution", "worker", "ui", "demo", "dev"):
        asked += extras[extra]
    names = {match[0].lower() for text in asked if (match := re.match(r"[A-Za-z0-9-]+", text))}
    assert names - {"ragblame"} - pinned == set()


def test_no_file_is_named_for_nothing() -> None:
    """A module's name says its concept: no utils, manager, common or base."""
    bad = {"utils.py", "util.py", "manager.py", "common.py", "base.py", "helpers.py", "misc.py"}
    assert [path for path in tracked() if path.name in bad] == []


def test_repository_names_no_private_place() -> None:
    """No package registry's host and no path of a developer's machine stands in the repository."""
    secret = re.compile(r"/wo" + r"rk/|/ho" + r"me/\w+/|py" + r"pi\.org|python" + r"hosted|/opt/" + r"wheels")
    found = [
        path.relative_to(ROOT)
        for path in tracked()
        if path.suffix in {".py", ".md", ".toml", ".txt", ".sql", ".js", ".css", ""}
        and secret.search(path.read_text("utf-8", errors="ignore"))
    ]
    assert found == []


def test_untrusted_text_never_meets_markup() -> None:
    """Streamlit's ways of turning text into markup are not used anywhere."""
    banned = re.compile(
        r"unsafe_allow_" + r"|components\.html" + r"|innerHTML|insertAdjacentHTML|document\.write"
    )
    found = [
        path.relative_to(ROOT)
        for folder in ("ui", "ragblame", "plugin", "retriever", "attribution")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".js"} and banned.search(path.read_text("utf-8"))
    ]
    assert found == []


def test_make_lists_every_target() -> None:
    """`make` alone is the table of contents: every phony target has a line of help."""
    text = (ROOT / "Makefile").read_text("utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    documented = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(phony[1].split()) == documented
