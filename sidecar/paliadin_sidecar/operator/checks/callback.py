"""How the callback is configured: its address, its secrets, and who may read them."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING

from paliadin_sidecar.operator.findings import Finding, note, ok, wrong

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from paliadin_sidecar.settings import Settings

__all__ = ["exposed_secrets", "secrets", "url"]

#: Not `whsec_<base64>`, which explains one.
_SECRET = re.compile(rb"whsec_[A-Za-z0-9+/=]{8}")


def secrets(settings: Settings) -> Finding:
    """How many there are; two are right while one is being replaced."""
    count = len(settings.secrets)
    if count == 1:
        return ok("callback secret", "one")
    return note("callback secret", f"{count}, as during a rotation; both ends know all?")


def exposed_secrets(paths: Iterable[Path]) -> Iterator[Finding]:
    """The files that hold a secret and that everybody can read."""
    for path in paths:
        try:
            exposed = path.stat().st_mode & stat.S_IROTH and _SECRET.search(path.read_bytes())
        except OSError:
            continue  # there is none
        if exposed:
            text = (
                f"{path} can be read by everybody, who can then forge callbacks: chmod 600 {path}"
            )
            yield wrong("secret's file", text)


def url(settings: Settings) -> Finding:
    """Where answers go, and whether they may be read on the way."""
    if not settings.callback_insecure:
        return ok("callback", settings.callback_url)
    text = (
        f"{settings.callback_url}: PALIADIN_CALLBACK_INSECURE=1 allows answers to be read on the "
        "way; unset it where the way is not a host's own"
    )
    return note("callback", text)
