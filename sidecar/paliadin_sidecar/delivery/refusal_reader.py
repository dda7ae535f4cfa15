"""Reads the bodies of refusals, while the next deliveries are sent."""

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


class RefusalReader:
    """Waits for the bodies of refusals, and keeps of them what may be shown."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[str | None]] = set()
        self._compared = 0  # bytes of what was sent

    def read(self, response: Response, sent: bytes) -> asyncio.Task[str | None] | None:
        """Begin to read a refusal's body.

        Args:
            response: the answer, of whose body some may still come.
            sent: the callback's body.

        Returns:
            What is kept of it, None where that is nothing. No task where there is no body, or where
            so many are read just now that this is left to a later attempt.
        """
        if not response.said and response.rest is None:
            return None
        if self._compared and self._compared + len(sent) > _MAX_COMPARED:
            return None
        self._compared += len(sent)
        task = asyncio.create_task(self._read(response, sent), name="refusal")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Read no more."""
        for task in self._tasks:
            task.cancel()

    async def _read(self, response: Response, sent: bytes) -> str | None:
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
