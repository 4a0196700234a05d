"""A database of the evaluation's own: faults delete rows and break indexes, never a user's."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ragblame import database, postgres


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary data folder; what ran in it is stopped and gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="ragblame-faults-"))
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # as root, the server's account passes through it
    try:
        yield folder
    finally:
        try:
            postgres.stop(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def start_in(folder: Path) -> str:
    """URL of a migrated embedded server in the folder. Raises ``EmbeddedPostgresError``."""
    url = postgres.ensure_running(folder)
    database.migrate(url)
    return url
