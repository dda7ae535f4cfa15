"""A process of its own with a SQLite store, which does what lines of its input say.

    python -m support.store_process DATABASE

`take TURN` begins to receive a push of that turn and prints the verdict; `end` has it stored, and
`hold TURN` a window. `die` is a SIGKILL. Each line is answered by one.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import AsyncExitStack

import anyio
from anyio import to_thread

from paliadin_client.store.protocol import Window
from paliadin_client.store.sqlite import SqliteStore
from support.pushes import push


async def main(path: str) -> None:
    store = SqliteStore(path)
    taken = AsyncExitStack()
    while line := await to_thread.run_sync(sys.stdin.readline):
        order, _, turn = line.strip().partition(" ")
        said = "done"
        if order == "take":
            receipt = await taken.enter_async_context(store.receive(push(turn)))
            said = receipt.verdict.name
        elif order == "end":
            await taken.aclose()
        elif order == "hold":
            held = await store.hold(Window("window", "user", turn), 30)
            said = str(held.turn_id)
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        print(said, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
