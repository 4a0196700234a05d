"""Where the tests' servers keep their files: in memory where there is room, else in the temporary folder.

ext4 passes over lately freed inodes, one by one, for every new file: to make a database of hundreds of files
after another was dropped takes the kernel 0.8 s instead of 0.05, and hundreds of them are made here.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 4 << 30  # bytes free


def open_folder() -> Path:
    """A new folder that a server's account can pass through; as root, pytest's tmp_path is closed to it."""
    has_room = os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free >= _ROOM
    folder = Path(tempfile.mkdtemp(prefix="ragblame-tests-", dir=_MEMORY if has_room else None))
    folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    return folder
