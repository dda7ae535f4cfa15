"""The daemon with a variant under trial, for measurements alone.

    ours.py VARIANT...

`no-commits`: the disk is never waited for, which a power cut would not forgive. `uvloop`: that
event loop. `httpx`: that library, not connections of our own. What it does is
`paliadin-sidecar run`.
"""

from __future__ import annotations

import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio

from paliadin_sidecar.operator import cli
from paliadin_sidecar.outbox.database import Database


def no_commits() -> None:
    """Let SQLite leave everything to the page cache."""
    set_up = Database._set_up  # noqa: SLF001 - no setting exists, so that nobody uses it

    def unsynchronised(self: Database, **named: Any) -> None:  # noqa: ANN401 - handed on
        set_up(self, **named)
        self.connection.execute("PRAGMA synchronous = OFF")

    setattr(Database, set_up.__name__, unsynchronised)


def uvloop() -> None:
    """Run on libuv."""
    anyio.run = partial(  # type: ignore[assignment]  # it is called with one argument
        anyio.run, backend_options={"use_uvloop": True}
    )


def httpx() -> None:
    """Send with httpx."""
    import httpx as library  # noqa: PLC0415 - the others do not load it

    from paliadin_sidecar.delivery import sender as deliver  # noqa: PLC0415 - loads what `run` keeps out of the others

    class Connections:
        def __init__(self, url: str, **_: object) -> None:
            self._url = url
            self._transport = library.AsyncHTTPTransport(verify=False)

        async def post(self, headers: dict[str, str], body: bytes) -> SimpleNamespace:
            request = library.Request("POST", self._url, content=body, headers=headers)
            answer = await self._transport.handle_async_request(request)
            await answer.aread()
            return SimpleNamespace(status=answer.status_code, headers=answer.headers)

        def close(self) -> None:
            pass  # the process ends

    vars(deliver)["Connections"] = Connections


for variant in sys.argv[1:]:
    {"no-commits": no_commits, "uvloop": uvloop, "httpx": httpx}[variant]()
sys.argv = ["paliadin-sidecar", "run"]
cli.main()
