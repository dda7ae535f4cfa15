"""Everything that can be examined without sending anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paliadin_sidecar.operator.checks import daemon, receiver, roots, storage, system
from paliadin_sidecar.operator.findings import Finding, ok

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from paliadin_sidecar.operator.instance import Instance
    from paliadin_sidecar.settings import Settings

__all__ = ["examine"]


def examine(
    settings: Settings,
    secret_in: Iterable[Path] = (),
    *,
    instance: Instance,
    owner_named: bool = True,
    unknown: Iterable[tuple[str, str]] = (),
) -> list[Finding]:
    """Examine the host, in the order of what depends on what.

    Call it in the main thread: it tries leases.

    Args:
        settings: the daemon's.
        secret_in: files that may hold the secret.
        instance: the daemon.
        owner_named: whether PALIADIN_OWNER is set.
        unknown: see `misspelt.unknown_variables`.
    """
    of_roots, answering = roots.examine(settings, owner_named=owner_named)
    settings = replace(settings, roots=answering)
    paths = [root.path for root in answering]
    return [
        ok("configuration", "every variable can be read"),
        *daemon.state(settings, instance, owner_named=owner_named),
        *daemon.misspelt_variables(unknown),
        *storage.state_directory(settings.state_dir),
        *storage.outbox(settings.state_dir, paths, instance.hosting),
        *of_roots,
        *storage.room_for_answers(paths, settings.max_bytes),
        *daemon.what_the_unit_hides(settings, instance.unit),
        system.file_events(settings),
        *system.read_leases(settings),
        receiver.callback_secrets(settings),
        *receiver.exposed_secrets(secret_in),
        receiver.callback_url(settings),
    ]
