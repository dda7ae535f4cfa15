"""Connects to the one backend that the environment selects."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from paliadin_client.hosts import Hosts
from paliadin_client.inbox import Inbox
from paliadin_client.settings import AichatSettings, LegacySettings, Settings
from paliadin_client.store.selection import open_store, store_from
from paliadin_client.turn import Paliadin
from paliadin_client.watching import StoreWatcher


@asynccontextmanager
async def connect(
    *, inbox: Inbox | None = None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Paliadin]:
    """The assistant, by way of the backend that `PALIADIN_BACKEND` selects.

    Nothing is sent before the first call. What the calls need (connections, ssh's key) is
    released when the context ends.

    Args:
        inbox: where pushes arrive, and whose store is this one's, too. Without one pushes come
            only by the store that `PALIADIN_STORE` names, where it names one.
        environ: the settings; `docs/client.md` has the table.

    Raises:
        ConfigError: a variable is missing or wrong; all that are wrong are named at once.
    """
    settings = Settings.from_environ(environ)
    async with open_paliadin(
        open_hosts(settings.backend),
        inbox=inbox,
        store=store_from(environ),
        deadline_s=settings.deadline_s,
    ) as paliadin:
        yield paliadin


@asynccontextmanager
async def open_paliadin(
    hosts: AbstractAsyncContextManager[Hosts],
    *,
    inbox: Inbox | None,
    store: str | None,
    deadline_s: float,
) -> AsyncIterator[Paliadin]:
    """The assistant, by way of these hosts.

    Args:
        hosts: are opened, and closed when the context ends.
        inbox: as for `connect`.
        store: names the store where there is no inbox; None leaves this process alone.
        deadline_s: how long `run_turn` waits in all, in seconds.
    """
    opened = inbox.store if inbox else open_store(store) if store is not None else None
    try:
        async with hosts as these:
            paliadin = Paliadin(these, inbox=inbox, store=opened, deadline_s=deadline_s)
            watcher = StoreWatcher(paliadin.store, paliadin.waiters)
            async with watcher.running(), paliadin.running():
                yield paliadin
    finally:
        with anyio.CancelScope(shield=True):
            if opened is not None:
                await opened.aclose()


@asynccontextmanager
async def open_hosts(settings: AichatSettings | LegacySettings) -> AsyncIterator[Hosts]:
    """The hosts that these settings name. The other backend's code is not even imported."""
    if isinstance(settings, AichatSettings):
        from paliadin_client.aichat import open_aichats  # noqa: PLC0415 - only where it is selected

        async with open_aichats(settings) as backends:
            # Each persona has windows of its own for the same users.
            yield Hosts(backends, scope=f"aichat/{settings.persona}")
    else:
        from paliadin_client.legacy import open_legacy  # noqa: PLC0415 - only where it is selected

        async with open_legacy(settings) as backend:
            yield Hosts({settings.host or backend.name: backend})
