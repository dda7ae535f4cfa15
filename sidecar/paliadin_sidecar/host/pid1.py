"""Imported before anything that takes time: process 1 ends when it is asked to, from the start.

The kernel drops a signal that process 1, as in a container, has no handler for. So a stop that
came while Python imported the rest would never be heard.
"""

from __future__ import annotations

import os
import signal
from types import FrameType


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)  # nothing has begun that needs an end; the daemon has its own handler


if os.getpid() == 1:
    for _number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(_number, _end)
