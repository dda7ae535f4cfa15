"""Everything that can be examined without sending anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from paliadin_sidecar import misspelt
from paliadin_sidecar.intake.turnfile import ignore_lease_breaks
from paliadin_sidecar.operator.checks import callback, daemon, roots, storage, system
from paliadin_sidecar.operator.findings import Finding, ok, wrong

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
    ignore_lease_breaks()
    of_roots, answering = roots.examine(settings, owner_named=owner_named)
    settings = replace(settings, roots=answering)
    return [
        ok("configuration", "every variable can be read"),
        *daemon.state(settings, instance, owner_named=owner_named),
        *(wrong("variable", misspelt.sentence(*one)) for one in unknown),
        *storage.state_directory(settings.state_dir),
        *storage.outbox(settings, instance.hosting),
        *of_roots,
        *storage.room_for_answers(settings),
        *daemon.what_the_unit_hides(settings, instance.unit),
        system.file_events(settings),
        *system.read_leases(settings),
        callback.secrets(settings),
        *callback.exposed_secrets(secret_in),
        callback.url(settings),
    ]
