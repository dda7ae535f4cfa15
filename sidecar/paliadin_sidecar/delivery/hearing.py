"""Hears what a receiver says when it refuses, beside whatever is sent next."""

from __future__ import annotations

import asyncio

from msgspec import Struct
from msgspec.json import Decoder

from paliadin_sidecar.delivery import refusal
from paliadin_sidecar.delivery.response import Response

#: What was sent is kept until it is compared: bodies of so many bytes, or one that is larger.
_MAX_COMPARED = 4 * 1024 * 1024


class _Data(Struct):
    user_id: str | None = None


class _Callback(Struct):
    data: _Data


_decode = Decoder(_Callback).decode


class Hearing:
    """Waits for the bodies of refusals, and keeps of them what may be shown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[str | None]] = set()
        self._compared = 0  # bytes of what was sent

    def listen(self, response: Response, sent: bytes) -> asyncio.Task[str | None] | None:
        """Begin to hear a refusal.

        Args:
            response: the answer, of whose body some may still come.
            sent: the callback's body.

        Returns:
            What is kept of it, None where that is nothing. No task where it says nothing, or where
            so much is heard just now that a later attempt must tell.
        """
        if not response.said and response.rest is None:
            return None
        if self._compared and self._compared + len(sent) > _MAX_COMPARED:
            return None
        self._compared += len(sent)
        task = asyncio.create_task(self._hear(response, sent), name="hearing")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Hear no more."""
        for task in self._tasks:
            task.cancel()

    async def _hear(self, response: Response, sent: bytes) -> str | None:
        try:
            if response.rest is not None:
                await response.rest
            return await _kept(response, sent)
        except Exception:  # noqa: BLE001 - whatever a receiver says, no turn suffers from it
            return None
        finally:
            self._compared -= len(sent)


async def _kept(response: Response, sent: bytes) -> str | None:
    body = refusal.body(response.headers, bytes(response.said))
    if not body.strip():
        return None
    if refusal.is_coded(response.headers):
        return refusal.CODED
    echo = refusal.EchoDetector(body)
    for piece in refusal.pieces(sent):
        if echo.is_in(piece):
            return refusal.ECHO
        await asyncio.sleep(0)  # others come first
    return refusal.said(body, _decode(sent).data.user_id) or None
