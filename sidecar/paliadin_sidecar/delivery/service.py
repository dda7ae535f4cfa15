"""Delivery as a whole: the dispatcher, with what sends for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from paliadin_sidecar.delivery.dispatcher import Dispatcher
from paliadin_sidecar.delivery.sender import Sender
from paliadin_sidecar.host.threads import Threads
from paliadin_sidecar.outbox.group_commit import GroupCommit
from paliadin_sidecar.settings import Settings

__all__ = ["open_dispatcher"]

#: Threads for the lookup of names: a name that does not resolve can keep one for half a minute.
_LOOKUPS = 4


@asynccontextmanager
async def open_dispatcher(settings: Settings, group: GroupCommit) -> AsyncIterator[Dispatcher]:
    """A dispatcher to the callback of these settings; its connections end with the block.

    Args:
        settings: where to, and signed with what.
        group: runs the outbox's functions.
    """
    with closing(Threads(_LOOKUPS, "lookup")) as lookups:
        async with Sender(
            settings.callback_url,
            settings.secrets,
            timeout_s=settings.callback_timeout_s,
            ca_file=settings.callback_ca_file,
            lookups=lookups,
        ) as sender:
            yield Dispatcher(
                group, sender.attempt, host=settings.host_label, refused_s=settings.refused_s
            )
