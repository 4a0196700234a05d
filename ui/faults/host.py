"""The host that is watched: it asks its chain and hands over what our callback captured of the answer."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from ragblame.errors import RagblameError
from ragblame.plugin import recorder as recorders
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.recorder import Recorder
from ragblame.records import Trace
from ragblame.settings import Settings
from ragblame.ui.faults.chain import Bench, Parts

PATIENCE = 30.0  # seconds for one trace to be assembled


class Host:
    """Asks one question after the other; ``with host(...)`` makes one."""

    def __init__(self, bench: Bench, recorder: Recorder) -> None:
        self._bench = bench
        self._recorder = recorder
        self._captured: list[Trace] = []
        self._handler = BlameHandler("faults", sink=self._captured.append)

    def ask(self, question: str, parts: Parts) -> Trace:
        """The captured trace of one answer. Raises ``RagblameError`` when there is none."""
        self._captured.clear()
        self._bench.chain(parts).invoke(question, config={"callbacks": [self._handler]})
        self._recorder.flush(PATIENCE)
        if len(self._captured) != 1:
            raise RagblameError(
                f"{len(self._captured)} traces were captured of one answer: run `ragblame doctor`"
            )
        return self._captured[0]


@contextmanager
def host(bench: Bench, url: str, folder: Path) -> Iterator[Host]:
    """A host with a recorder of its own, so that nothing of this reaches the user's database or spool."""
    settings = Settings(database_url=SecretStr(url), data_dir=folder)
    recorder = Recorder(lambda: settings)
    before = recorders.install(recorder)
    try:
        yield Host(bench, recorder)
    finally:
        recorders.install(before)
        recorder.close(PATIENCE)
