"""Opens a TCP connection to the first address of a name that answers (RFC 8305, Happy Eyeballs)."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio

from paliadin_sidecar.host.resources import Threads

#: As `socket.getaddrinfo` has them: family, type, protocol, name, address.
_Address = tuple[int, int, int, str, Any]


#: A second address is tried when the first has not answered for so long (RFC 8305, 8).
_NEXT_ADDRESS_S = 0.25


class Resolver:
    """Asks for a name's addresses, once for all who want to know at the same time.

    Args:
        threads: where it is asked: a name server that does not answer keeps one for half a minute.
    """

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._pending: dict[tuple[str, int], asyncio.Future[Sequence[_Address]]] = {}

    async def __call__(self, host: str, port: int) -> Sequence[_Address]:
        """The addresses.

        Raises:
            socket.gaierror: there are none.
        """
        resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        with suppress(socket.gaierror):
            return resolve(flags=socket.AI_NUMERICHOST)  # needs nobody's answer
        pending = self._pending.get((host, port))
        if pending is None or pending.done():
            pending = self._pending[host, port] = self._threads.begin(resolve)
            pending.add_done_callback(_look_at)
        # Who waits no longer leaves it to the others, and one that hangs is left alone.
        return await asyncio.shield(pending)

    def forget(self) -> None:
        """Whoever is being asked may not be there any more: the next one asks anew."""
        self._pending.clear()


def _look_at(done: asyncio.Future[Sequence[_Address]]) -> None:
    # Nobody may be left who wants to know, and then nobody else looks at its exception.
    if not done.cancelled():
        done.exception()


async def connect(host: str, port: int, resolver: Resolver) -> socket.socket:
    """A socket that is connected, and does not block.

    Args:
        host: a name or an address.
        port: of it.
        resolver: asks for its addresses.

    Raises:
        OSError: no address answers. `socket.gaierror` is a kind of it.
    """
    # To the first address that answers: each is tried while those before it are waited for,
    # families by turns (RFC 8305, 4 and 5).
    of_family: Counter[int] = Counter()
    ranked = []
    for address in await resolver(host, port):
        of_family[address[0]] += 1
        ranked.append((of_family[address[0]], address))
    unused: set[socket.socket] = set()
    connected: list[socket.socket] = []
    errors: list[OSError] = []

    async def attempt(address: _Address, failed: anyio.Event) -> None:
        try:
            made = socket.socket(*address[:3])
            unused.add(made)
            made.setblocking(False)  # noqa: FBT003 - the system's call has no name for it
            await asyncio.get_running_loop().sock_connect(made, address[4])
        except OSError as exc:
            errors.append(exc)
            failed.set()
        else:
            connected.append(made)
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for _, address in sorted(ranked, key=lambda one: one[0]):
                failed = anyio.Event()
                tasks.start_soon(attempt, address, failed)
                with anyio.move_on_after(_NEXT_ADDRESS_S):
                    await failed.wait()
        if not connected:
            raise errors[0]
        unused.remove(connected[0])
        return connected[0]
    finally:
        for made in unused:
            made.close()
