"""Plays a demo on what it needs, and leaves nothing behind, also where it is interrupted."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import anyio
from rich.console import Console

#: Cells of all columns: a terminal of 80 has room for them.
WIDTH = 80


class Stage(Protocol):
    """The processes and directories of a demo.

    Attributes:
        logs: what all processes say.
    """

    logs: Path

    def close(self, *, keep_logs: bool) -> list[str]:
        """End and remove everything; a sentence for each thing that stayed."""
        ...


_S = TypeVar("_S", bound=Stage)


async def perform(
    make: Callable[[], _S], play: Callable[[Console, _S, anyio.CancelScope], Awaitable[bool]]
) -> int:
    """Play, and return the exit code: 0 where all is well and nothing is left.

    Args:
        make: makes the stage, which is closed here.
        play: is given the console, the stage, and what to cancel where nobody reads the output any
            more; returns whether all is well.
    """
    console, well = Console(highlight=False), False
    console.width = max(console.width, WIDTH)  # a narrower terminal breaks lines, cuts no words
    with anyio.CancelScope() as scope:
        # The loop runs these handlers: none comes between starting a process and keeping it.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as it is by `nohup`
                asyncio.get_running_loop().add_signal_handler(number, scope.cancel)
        stage = make()
        try:
            well = await play(console, stage, scope)
        finally:
            keep_logs = not (well or scope.cancel_called)
            left = stage.close(keep_logs=keep_logs)
    for line in left:
        console.print(f"[red]wrong:[/red] {line}")
    if scope.cancel_called:
        console.print("\nInterrupted: everything is stopped and removed.")
        return 128 + signal.SIGINT
    if keep_logs:
        console.print(f"The logs are kept in {stage.logs}", soft_wrap=True)
    return 0 if well and not left else 1
