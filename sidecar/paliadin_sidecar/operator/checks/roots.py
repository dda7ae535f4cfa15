"""The roots: whether answers can be taken from them."""

from __future__ import annotations

import errno
import shlex
import threading
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.intake.roots import MAX_NAMES, Root
from paliadin_sidecar.operator.findings import Finding, note, ok, wrong
from paliadin_sidecar.operator.lookup import ID_RULE, listed, strays

if TYPE_CHECKING:
    from collections.abc import Callable

    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["examine"]

T = TypeVar("T")

#: The root directory as process 1 sees it.
_OF_PROCESS_1 = "/proc/1/root"
#: A root that has not answered by then hangs.
_HANGS_S = 5.0


def examine(settings: Settings, *, owner_named: bool) -> tuple[list[Finding], tuple[RootSpec, ...]]:
    """What is found, and the roots that answer: nothing else is asked of one that does not."""
    found: list[Finding] = []
    answering = []
    for spec in settings.roots:
        of_root = _within(_HANGS_S, partial(_root, spec, settings.owner, owner_named=owner_named))
        if of_root is None:
            path = shlex.quote(str(spec.path))
            hangs = (
                f"{spec.path} does not answer: its disk hangs, or what serves its mount, which "
                f"findmnt -T {path} names; the kernel says more: dmesg | tail. Answers are taken "
                "again as soon as it does; if it never will, this ends what waits for it: "
                f"umount -f {path}; umount -l {path}"
            )
            found.append(wrong(_subject(spec), hangs))
        else:
            found += of_root
            answering.append(spec)
    return found, tuple(answering)


def _within(seconds: float, call: Callable[[], T]) -> T | None:
    # In a thread, which is left alone where it hangs; None then.
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return done[0] if done else None


def _subject(spec: RootSpec) -> str:
    return f"root {spec.backend}/{spec.persona} {spec.path}"


def _root(spec: RootSpec, owner: int, *, owner_named: bool) -> list[Finding]:
    subject = _subject(spec)
    root = Root(spec.path, owner)
    root.check()
    names: list[str] = []
    with suppress(OSError):  # that it cannot be listed becomes its state
        names = list(islice(root.names(always=True) or (), MAX_NAMES))
    root.close()
    match root.state:
        case "unreadable":
            return [wrong(subject, f"{root.why}: {_if_unreadable(root, owner)}")]
        case "untrusted":
            remedy = _if_untrusted(root, owner, owner_named=owner_named)
            return [wrong(subject, f"nothing is taken from it, since {root.why}{remedy}")]
        case "missing":
            make = f"install -d -m 700 -o {user_name(owner)} {shlex.quote(str(spec.path))}"
            return [note(subject, f"{root.why}; watched as soon as it is there: {make}")]
    found = [_own_directory(subject, spec.path) or ok(subject, "is there and can be trusted")]
    if others := strays(names):
        ignored = f"holds what is no turn's and is ignored: {listed(others)}; {ID_RULE}"
        found.append(note(f"names in {spec.path}", ignored))
    return found


def _if_untrusted(root: Root, owner: int, *, owner_named: bool) -> str:
    step = shlex.quote(str(root.step))
    if "is no directory" in root.why:
        return f": mv {step} {step}.aside"
    if "PALIADIN_OWNER" not in root.why:
        return ""  # its reason ends with what mends it
    if owner_named and owner != 0:
        boot = "and in /etc/tmpfiles.d/, where that makes it at each boot"
        chown = f"chown {user_name(owner)} {step}"
        return f": name that user there, or, if it is the agent's ({boot}): {chown}"
    # The directory is right: given to root, or to the sidecar's user, it would shut the agent out.
    found = "the agent's user"
    with suppress(OSError):
        found = user_name(root.step.lstat().st_uid)
    unset = "" if owner_named else ", which is not set"
    return f"{unset}: PALIADIN_OWNER={found}, if that is the agent's user, and restart the sidecar"


def _if_unreadable(root: Root, owner: int) -> str:
    match root.error:
        case errno.EACCES | errno.EPERM:
            return (
                f"only user {user_name(owner)} can, or who has CAP_DAC_READ_SEARCH, as the unit "
                "has; to see it as that does: sudo paliadin-sidecar check"
            )
        case errno.ENOTCONN | errno.ECONNABORTED | errno.ESTALE | errno.ENODEV:
            return (
                "what serves this mount is gone; answers are taken again as soon as it is back: "
                f"umount -l {shlex.quote(str(root.step))}, then mount it again"
            )
        case errno.ENAMETOOLONG:
            return "name a shorter path in PALIADIN_WATCH"
        case _:
            return (
                "answers are taken again as soon as it can be read; the kernel says more about "
                "its disk or mount: dmesg | tail"
            )


def _own_directory(subject: str, path: Path) -> Finding | None:
    # Whether this very process sees another directory than the host has there, as within a unit or
    # a container. Process 1 sees the host as it is; who may not ask it is told nothing.
    try:
        seen, real = path.stat(), Path(f"{_OF_PROCESS_1}{path}").stat()
    except FileNotFoundError:
        same = False
    except OSError:
        return None
    else:
        same = (seen.st_dev, seen.st_ino) == (real.st_dev, real.st_ino)
    if same:
        return None
    text = (
        "is not the host's directory but one of this process's own, where no answer is ever "
        "written: run it without PrivateTmp=, or mount the host's directory into the container"
    )
    return wrong(subject, text)
