"""`ragblame eval` measures, says it in every form, and refuses what it cannot do before it starts working."""

import json
from pathlib import Path

import pytest

from ragblame.attribution.evaluation import page
from ragblame.attribution.evaluation.evidence import from_json
from ragblame.errors import InputError
from ragblame.ui import cli

QUESTIONS = 12


def write_labelled(path: Path) -> Path:
    """Twelve questions with two answers each: the second states a value that no chunk has."""
    lines = []
    for number in range(QUESTIONS):
        right, wrong = f"{number + 11} seconds", f"{number + 511} seconds"
        for index, value in enumerate((right, wrong)):
            answer = f"The timeout of gateway {number} is {value}."
            start = answer.index(value)
            label = {"start": start, "end": start + len(value), "text": value, "type": "Evident Conflict"}
            row = {
                "id": f"{number}-{index}",
                "dataset": "timeouts",
                "task": "qa",
                "source_id": str(number),
                "question": f"What is the timeout of gateway {number}?",
                "chunks": [
                    {"chunk_id": "a", "text": f"The timeout of gateway {number} is {right}."},
                    {"chunk_id": "b", "text": f"Gateway {number} was built in Oslo."},
                ],
                "answer": answer,
                "labels": [label] if index else [],
                "support_sets": [] if index else [["a"]],
                "model": "by hand",
                "split": "dev",
            }
            lines.append(json.dumps(row))
    path.write_text("\n".join(lines), "utf-8")
    return path


def run(*arguments: str) -> int:
    """Exit code of `ragblame eval …`."""
    return cli.run(["eval", *arguments])


def test_labels_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout, words on stderr, a page beside it, and a document made of that very object."""
    file, report = write_labelled(tmp_path / "timeouts.jsonl"), tmp_path / "out.html"
    assert run("labels", str(file), "--json", "--seed", "3", "--report", str(report)) == 0
    said = capsys.readouterr()
    value = json.loads(said.out)
    evidence = from_json(value)
    assert evidence.seed == 3
    assert evidence.command.startswith("ragblame eval labels")
    assert {row["table"] for row in value["rows"]} <= {table.title for table in evidence.tables}
    assert "timeouts" in said.err
    assert "<!doctype html>" in report.read_text("utf-8")
    saved, document = tmp_path / "labels.json", tmp_path / "evaluation.md"
    saved.write_text(said.out, "utf-8")
    assert page.main([str(saved), "--out", str(document)]) == 0
    assert evidence.command in document.read_text("utf-8")


def test_labels_sees_what_was_planted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every planted contradiction is flagged and no right answer is: the confusion of answers is diagonal."""
    assert run("labels", str(write_labelled(tmp_path / "timeouts.jsonl")), "--json") == 0
    (confusion,) = from_json(json.loads(capsys.readouterr().out)).confusions
    assert confusion.counts == ((QUESTIONS, 0), (0, QUESTIONS))


def test_the_same_command_gives_the_same_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows and bars are equal to the last digit; only the machine's load may differ."""
    file = str(write_labelled(tmp_path / "timeouts.jsonl"))
    objects = []
    for _ in range(2):
        assert run("labels", file, "--json", "--limit", "10") == 0
        objects.append(json.loads(capsys.readouterr().out) | {"environment": None})
    assert objects[0] == objects[1]


def test_labels_for_a_person_ends_with_the_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json tables stand on stdout, and each bar behind them; exit code 0 whatever they say."""
    assert run("labels", str(write_labelled(tmp_path / "timeouts.jsonl")), "--quick") == 0
    lines = capsys.readouterr().out.splitlines()
    bars = lines[next(i for i, line in enumerate(lines) if "bars hold" in line or "No bar" in line) + 1 :]
    assert all(line.endswith(("holds", "FALLS SHORT")) for line in bars)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("labels", "absent.jsonl"), "absent.jsonl"),
        (("labels", "there.jsonl", "--report", "no/such/folder/x.html"), "cannot be written"),
        (("world", "--report", "."), "cannot be written"),
        (("world", "--model", "no-such-folder"), "no-such-folder is no folder"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A missing file or folder is told before anything is measured, with the next step."""
    monkeypatch.chdir(tmp_path)
    write_labelled(tmp_path / "there.jsonl")
    assert run(*arguments) == InputError.exit_code
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert said.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in said.err
