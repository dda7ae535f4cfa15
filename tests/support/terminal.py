"""A command on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
import time
from typing import TYPE_CHECKING, Any, Self

from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Sequence


class Terminal:
    """A pseudo-terminal and the command on it; use it as a context manager.

    Args:
        command: what is run.
        environ: its environment.
        columns: how wide the terminal is.
        lines: how high.
    """

    def __init__(
        self, command: Sequence[str], environ: dict[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        self._master, self.slave = pty.openpty()
        self.resize(columns, lines)
        self.before = termios.tcgetattr(self.slave)
        self._output = bytearray()
        self.process = subprocess.Popen(
            # In a session of its own, whose terminal this is: so Ctrl-C is a signal.
            ["setsid", "--ctty", *command], env=environ | {"TERM": "xterm"}, stdin=self.slave,
            stdout=self.slave, stderr=self.slave,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int, lines: int) -> None:
        """Make it so wide and so high."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, size)

    def _read(self) -> None:
        while select.select([self._master], [], []):
            try:
                self._output += os.read(self._master, 65_536)
            except OSError:
                return

    @property
    def output(self) -> str:
        """All that was written so far."""
        return self._output.decode(errors="replace")

    @property
    def attributes(self) -> list[Any]:
        """As stty has them."""
        return termios.tcgetattr(self.slave)

    def type(self, keys: bytes) -> None:
        """Type these."""
        os.write(self._master, keys)

    def wait_for(self, text: str) -> None:
        """Until this was written."""
        until(f"{text!r} on the terminal", lambda: text in self.output)

    def wait(self) -> int:
        """Its exit code, once all that it wrote was read."""
        code = self.process.wait(PATIENCE_S)
        os.write(self.slave, b"<end>")
        self.wait_for("<end>")
        return code

    def rest(self, seconds: float) -> str:
        """What is written within a time that no event ends."""
        before = len(self.output)
        time.sleep(seconds)  # that nothing comes is known only when the time is over
        return self.output[before:]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        os.close(self.slave)
        self._reader.join(PATIENCE_S)
        os.close(self._master)
