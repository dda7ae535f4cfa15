"""The directories: whether answers can be taken from the roots, and kept in the state directory."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

from paliadin_sidecar.errors import OutboxError
from paliadin_sidecar.host.storage import NO_ROOM, explain, user_name, write_error
from paliadin_sidecar.intake.filesystem import LOCAL, directory_type
from paliadin_sidecar.intake.roots import MAX_NAMES, Root
from paliadin_sidecar.operator.diagnosis import Finding, note, ok, wrong
from paliadin_sidecar.operator.instance import Hosting, unit_name
from paliadin_sidecar.operator.session import ID_RULE, foreign_names, listed
from paliadin_sidecar.outbox import queries
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.settings import RootSpec, Settings

T = TypeVar("T")

#: File systems in memory.
_FORGETFUL = {"tmpfs", "ramfs"}
#: The root directory as process 1 sees it.
_OF_PROCESS_1 = "/proc/1/root"
#: A directory that has not answered by then hangs.
_HANGS_S = 5.0
#: Less is nearly none: the largest answers that can wait at the same time take more.
_MIN_FREE_BYTES = 100 * 2**20
#: An outbox of which not every page was read by then is not read further.
_READ_S = 5.0


def roots(settings: Settings, *, owner_named: bool) -> tuple[list[Finding], tuple[RootSpec, ...]]:
    """What is found, and the roots that answer: nothing else is asked of one that does not."""
    found: list[Finding] = []
    answering = []
    for spec in settings.roots:
        of_root = _unless_it_hangs(partial(_root, spec, settings.owner, owner_named=owner_named))
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


def _unless_it_hangs(call: Callable[[], T]) -> T | None:
    # In a thread, which is left alone then.
    done: list[T] = []
    thread = threading.Thread(target=lambda: done.append(call()), daemon=True)
    thread.start()
    thread.join(_HANGS_S)
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
    if others := foreign_names(names):
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
    # a container. Process 1 sees the host as it is; who may not ask it gets no finding.
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


def state_directory(path: Path) -> list[Finding]:
    """Whether the daemon can keep answers there, and nobody else can take them away."""
    subject = f"state directory {path}"
    try:
        info = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return [note(subject, "does not exist yet; `run` makes it"), _room(path)]
    except OSError as exc:
        text = (
            f"cannot be read ({explain(exc, path)}), so no answer is accepted: the kernel says "
            "more of its disk or mount: journalctl -k | tail"
        )
        return [wrong(subject, text)]
    if not stat.S_ISDIR(info.st_mode):
        place = shlex.quote(str(path))
        aside = f"mv {place} {place}.aside"
        return [wrong(subject, f"is no directory, so no answer can be kept: {aside}")]
    user, owner = user_name(os.geteuid()), user_name(info.st_uid)
    if refused := _refused(path):
        return [wrong(subject, refused), _room(path)]
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        text = (
            f"belongs to user {owner} and cannot be written by user {user}, so no answer could be "
            "kept. If that user runs the daemon: sudo paliadin-sidecar check; else: "
            f"chown {user} {path}"
        )
        return [wrong(subject, text), _room(path)]
    found = [ok(subject, "can be written")]
    if info.st_uid != os.geteuid():
        text = (
            f"belongs to user {owner}, as whom the daemon runs, and this is user {user}: what that "
            "user may not do does not show here"
        )
        found = [note(subject, text)]
    if info.st_mode & 0o077:
        found = [note(subject, f"is open to others, its files are not: chmod 700 {path}")]
    if others := _files_of_others(path, info.st_uid):
        text = (
            f"{listed(others)} in it: not of user {owner}, as whom the daemon runs, so that it "
            f"cannot write there: chown -R {owner} {shlex.quote(str(path))}"
        )
        found.append(wrong(subject, text))
    way = Root(path.resolve(), info.st_uid)
    way.check()
    way.close()
    if "is writable by" in way.why:
        text = f"whoever may change it can take the outbox away: {way.why}"
        found.append(wrong(subject, text))
    return [*found, *_file_system(path), _room(path)]


def _file_system(path: Path) -> Iterator[Finding]:
    # Whether what is kept there outlives what an outbox is to outlive.
    kind = directory_type(path.resolve())
    if kind in _FORGETFUL:
        text = (
            "in memory: with a restart of the host or a loss of power goes each answer that was "
            "accepted and not delivered. Name a directory on a disk in PALIADIN_STATE_DIR"
        )
    elif kind == "overlay":
        text = (
            "of layers: where they are a container's own, each answer that was accepted and not "
            "delivered goes with it. Mount a volume there"
        )
    elif kind and kind not in LOCAL:
        text = (
            "perhaps of another machine: SQLite relies on what it says of locks and flushes. Name "
            "a directory on a disk of this one in PALIADIN_STATE_DIR"
        )
    else:
        return
    yield note("outbox's file system", f"{kind}, {text}")


def _refused(path: Path) -> str:
    # Why its file system takes no file, apart from rights; empty where it does.
    place = shlex.quote(str(path))
    kernel = "the kernel says why: journalctl -k | tail"
    # One without a number is none.
    error = _unless_it_hangs(lambda: write_error(path) or OSError())
    if error is None:
        return f"does not store what is written there, so no answer is accepted: {kernel}"
    match error.errno:
        case None | errno.EACCES | errno.EPERM:
            return ""
        case errno.EROFS:
            return (
                "is on a read-only file system, so no answer is accepted; all goes on by itself "
                f"once it can be written: mount -o remount,rw $(df --output=target {place} | "
                f"tail -n 1). If it became so by itself, {kernel}, and what mends it is to stop "
                "the daemon, fsck the disk and mount it again"
            )
        case number:
            why = explain(error, path)
            mends = _make_room(place) if number in NO_ROOM else kernel
            return f"cannot be written ({why}), so no answer is accepted: {mends}"


def _files_of_others(path: Path, owner: int) -> list[str]:
    # As a copy that was made, or a command that was tried, as root leaves them.
    found = []
    for file in path.iterdir():
        with suppress(FileNotFoundError):  # SQLite removes its log with the last connection
            info = file.lstat()
            if stat.S_ISREG(info.st_mode) and info.st_uid != owner:
                found.append(file.name)
    return sorted(found)


def _room(path: Path) -> Finding:
    there = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        return note("disk", "its file system does not say how much is free")
    free_here = f"{free // 2**20} MiB are free where the outbox is"
    if free < _MIN_FREE_BYTES:
        full = "and once it is full no answer is accepted"
        return wrong("disk", f"{free_here}, {full}: {_make_room(str(there))}")
    return ok("disk", free_here)


def room_for_answers(settings: Settings) -> Iterator[Finding]:
    """Whether the largest answer fits into each root's file system.

    A writer that meets a full disk leaves an answer that is empty or cut, and nobody sees that.
    """
    seen = set()
    for root in (spec.path for spec in settings.roots):
        with suppress(OSError):
            free, device = shutil.disk_usage(root).free, root.stat().st_dev
            if free < settings.max_bytes and device not in seen:
                mount = f"$(df --output=target {shlex.quote(str(root))} | tail -n 1)"
                text = (
                    f"{free // 2**10} KiB are free in {root}, so that the agent's answers are "
                    f"cut or empty: {_make_room(mount)}"
                )
                yield wrong("disk", text)
            seen.add(device)


def _make_room(place: str) -> str:
    return f"make room; du -xh {place} | sort -h | tail shows where it went"


def outbox(settings: Settings, hosting: Hosting) -> list[Finding]:
    """Whether it can be read, to its last page, and is of these roots."""
    try:
        with Outbox(settings.state_dir / FILENAME) as opened:
            whole = opened.check_pages(_READ_S)
            (service,) = opened.transaction([partial(queries.service, opened)])
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # `run` makes it, or the state directory's finding says why not
    except OutboxError as exc:
        cause = f"the outbox {exc.path}: {exc.detail}"
        return [wrong("outbox", f"{exc}: {hosting.remedy(exc)}", cause)]
    found = [ok("outbox", "each page can be read")]
    if not whole:
        found = [note("outbox", f"too large to be read within {_READ_S:.0f} s")]
    watched = {root["path"] for root in service["roots"]}
    if watched and watched != {str(spec.path) for spec in settings.roots}:
        text = (
            f"the daemon watches {', '.join(sorted(watched))}, which this environment does not "
            "say, so what is said here is not of the daemon: name the daemon's with --env-file, "
            f"or: systemctl restart {unit_name(settings.state_dir)}"
        )
        found.append(wrong("environment", text))
    return found
