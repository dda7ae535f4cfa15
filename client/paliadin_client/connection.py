"""Connects to the one backend that the environment selects."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio

from paliadin_client.backend import Backend
from paliadin_client.inbox import Inbox
from paliadin_client.settings import AichatSettings, LegacySettings, Settings
from paliadin_client.store.selection import open_store, store_from
from paliadin_client.turn import Paliadin
from paliadin_client.waiting import Waiters
from paliadin_client.watching import StoreWatcher

__all__ = ["connect", "open_backend"]


@asynccontextmanager
async def connect(
    *, inbox: Inbox | None = None, environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Paliadin]:
    """The assistant, by way of the backend that `PALIADIN_BACKEND` selects.

    Nothing is sent before the first call. What the calls need (connections, ssh's key) is
    released when the context ends.

    Args:
        inbox: where pushes arrive; without one the backend's own response is the only source. Its
            store is this one's, too; without one it is what `PALIADIN_STORE` names.
        environ: the settings; `docs/client.md` has the table.

    Raises:
        ConfigError: a variable is missing or wrong; all that are wrong are named at once.
    """
    settings = Settings.from_environ(environ)
    store = inbox.store if inbox else open_store(store_from(environ))
    watcher = StoreWatcher(store, inbox or Waiters())
    try:
        async with open_backend(settings.backend) as backend, watcher.running():
            yield Paliadin(backend, inbox=inbox, deadline_s=settings.deadline_s)
    finally:
        with anyio.CancelScope(shield=True):
            await store.aclose()


def open_backend(settings: AichatSettings | LegacySettings) -> AbstractAsyncContextManager[Backend]:
    """The backend that these settings are for. The other's code is not even imported."""
    if isinstance(settings, AichatSettings):
        from paliadin_client.aichat import open_aichat  # noqa: PLC0415 - see above

        return open_aichat(settings)
    from paliadin_client.legacy import open_legacy  # noqa: PLC0415 - see above

    return open_legacy(settings)
