"""`ragblame ui`: everything that would make the page fail is told in one line before Streamlit starts."""

import signal
import socket
import subprocess
from importlib.util import find_spec
from typing import Final

from ragblame.errors import MissingExtraError, RagblameError, SettingsError
from ragblame.settings import Settings

STOP_SECONDS: Final = 10.0  # Streamlit may take so long to end before it is killed
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


def serve_triage(settings: Settings, *, address: str | None = None, port: int | None = None) -> None:
    """Serve the triage page until Ctrl-C or SIGTERM; ``address`` and ``port`` override the settings.

    Raises ``MissingExtraError`` without Streamlit, ``SettingsError`` when the port is taken,
    ``DatabaseError`` when there is no usable database, ``RagblameError`` when the page ends by itself.
    """
    from ragblame import database
    from ragblame.ui.launch import streamlit_command
    from ragblame.ui.terminal import say

    if find_spec("streamlit") is None:
        raise MissingExtraError("the triage page needs streamlit: pip install 'ragblame[ui]'")
    address, port = address or settings.ui_address, port or settings.ui_port
    require_free_port(address, port)
    database.require_schema(database.resolve_url(settings))  # this process keeps an embedded server alive
    if address not in _LOOPBACK:
        say(f"nothing protects {address}:{port}: whoever reaches it reads all answers", style="yellow")
    host = f"[{address}]" if ":" in address else address
    say(f"triage page: http://{host}:{port}   (Ctrl-C ends it)", style="green")
    process = subprocess.Popen(streamlit_command(address=address, port=port), stdout=subprocess.DEVNULL)
    code = wait_for(process)
    if code != 0:
        raise RagblameError(f"the triage page ended with code {code}: see what it printed above")


def require_free_port(address: str, port: int) -> None:
    """Raise ``SettingsError`` unless a server may listen there."""
    try:
        family = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind((address, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(
            f"cannot listen on {address}:{port} ({reason}): end the program there or choose another --port"
        ) from error


def wait_for(process: "subprocess.Popen[bytes]") -> int:
    """Wait until the child ends; Ctrl-C and SIGTERM end it, which counts as 0. It is never left behind."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
