"""The daemon with a variant under trial, for measurements alone.

    ours.py VARIANT...

`no-commits`: the disk is never waited for, which a power cut would not forgive. `uvloop`: that
event loop. `httpx`: that library instead of aiohttp. What it does is `paliadin-sidecar run`.
"""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio

from paliadin_sidecar import cli, outbox


def no_commits() -> None:
    """Let SQLite leave everything to the page cache."""
    set_up = outbox.Outbox._set_up  # noqa: SLF001 - no setting exists, so that nobody uses it

    def unsynchronised(self: outbox.Outbox, **named: Any) -> None:  # noqa: ANN401 - handed on
        set_up(self, **named)
        self._db.execute("PRAGMA synchronous = OFF")

    setattr(outbox.Outbox, set_up.__name__, unsynchronised)


def uvloop() -> None:
    """Run on libuv."""
    anyio.run = partial(  # type: ignore[assignment]  # it is called with one argument
        anyio.run, backend_options={"use_uvloop": True}
    )


def httpx() -> None:
    """Send with httpx."""
    import httpx as library  # noqa: PLC0415 - the others do not load it

    from paliadin_sidecar import deliver  # noqa: PLC0415 - loads what `run` keeps out of the others

    class Session:
        def __init__(self) -> None:
            self._transport = library.AsyncHTTPTransport(verify=False)
            self.close = self._transport.aclose

        async def post(
            self, url: str, *, data: bytes, headers: dict[str, str], **_: object
        ) -> SimpleNamespace:
            request = library.Request("POST", url, content=data, headers=headers)
            answer = await self._transport.handle_async_request(request)
            await answer.aread()
            return SimpleNamespace(
                status=answer.status_code, headers=answer.headers, release=lambda: None
            )

    vars(deliver)["_session"] = lambda **_: Session()


for variant in sys.argv[1:]:
    {"no-commits": no_commits, "uvloop": uvloop, "httpx": httpx}[variant]()
sys.argv = ["paliadin-sidecar", "run"]
cli.main()
