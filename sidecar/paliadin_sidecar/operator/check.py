"""Is everything as it must be? Each finding says what, why it matters, and what mends it."""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import threading
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from paliadin_contract.ids import turn_id_of
from paliadin_sidecar import misspelt
from paliadin_sidecar.errors import OutboxError, Unreadable
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.intake.filesystem import LOCAL, type_of
from paliadin_sidecar.intake.notifications import why_no_events
from paliadin_sidecar.intake.roots import Root
from paliadin_sidecar.intake.turnfile import TurnFile, ignore_lease_breaks
from paliadin_sidecar.operator.advice import unit_name
from paliadin_sidecar.operator.diagnosis import Finding
from paliadin_sidecar.operator.lookup import ID_RULE, listed, strays
from paliadin_sidecar.operator.running import look, outdated, problems
from paliadin_sidecar.operator.unit import complaints
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from paliadin_sidecar.operator.advice import Hosting
    from paliadin_sidecar.operator.running import Daemon
    from paliadin_sidecar.operator.unit import Unit
    from paliadin_sidecar.settings import RootSpec, Settings

__all__ = ["credentials", "examine"]

T = TypeVar("T")

#: Not as the daemon's user, who without the unit's capabilities is told what is not so.
_AS_ROOT = "sudo paliadin-sidecar check"
#: The root directory as process 1 sees it.
_HOST = "/proc/1/root"
#: What hides directories from a unit: the values that do not, and which directories.
_HIDES = {
    "PrivateTmp": (("no",), ("/tmp", "/var/tmp")),  # noqa: S108 - a place, not a file
    "ProtectHome": (("no", "read-only"), ("/home", "/root", "/run/user")),
}
#: Less is nearly none: the largest answers that can wait at the same time take more.
_LEAST_FREE = 100 * 2**20
#: Not `whsec_<base64>`, which explains one.
_SECRET = re.compile(rb"whsec_[A-Za-z0-9+/=]{8}")
#: Nobody who looks waits longer for one thing.
_READ_S = 5.0


def examine(
    settings: Settings,
    secret_in: Iterable[Path] = (),
    *,
    owner_named: bool = True,
    unknown: Iterable[tuple[str, str]] = (),
    daemon: Daemon | None = None,
) -> list[Finding]:
    """Look at everything that can be seen without sending anything.

    Call it in the main thread: it tries leases.

    Args:
        settings: the daemon's.
        secret_in: files that may hold the secret.
        owner_named: whether PALIADIN_OWNER is set.
        unknown: see `misspelt.unknown_variables`.
        daemon: itself, looked at already.
    """
    ignore_lease_breaks()
    daemon = daemon or look(settings.state_dir)
    roots, answering = _roots(settings, named=owner_named)
    settings = replace(settings, roots=answering)
    return [
        Finding("ok", "configuration", "every variable can be read"),
        *_daemon(settings, daemon, owner_named=owner_named),
        *(Finding("wrong", "variable", misspelt.sentence(*one)) for one in unknown),
        *_state_dir(settings.state_dir),
        *_outbox(settings, daemon.hosting),
        *roots,
        *_room_for_answers(settings),
        *_hides(settings, daemon.unit),
        _events(settings),
        *_leases(settings),
        _secrets(settings),
        *_exposed(secret_in),
        _url(settings),
    ]


def credentials(state_dir: Path, env_file: Path) -> Path | None:
    """The directory with the service's `callback-secret`, None where there is none.

    It lies beside the environment file; where it is kept elsewhere, it is what systemd gave the
    unit. In this order: a secret that was changed is the daemon's only after a restart, and that is
    to be seen.

    Raises:
        PermissionError: it is there, and this user may not read it.
    """
    denied = None
    for folder in (env_file.parent, Path("/run/credentials") / unit_name(state_dir)):
        try:
            (folder / "callback-secret").open("rb").close()
        except PermissionError as exc:
            denied = denied or exc
        except OSError:
            continue
        else:
            return folder
    if denied is not None:
        raise denied
    return None


# --- the daemon ---------------------------------------------------------------------------


def _daemon(settings: Settings, daemon: Daemon, *, owner_named: bool) -> list[Finding]:
    if daemon.alive is None:
        return []  # the state directory's finding says so
    if not daemon.alive and daemon.report is None and daemon.unit is None:
        return [Finding("note", "daemon", "has not run here yet")]
    variables = settings.variables()
    if not owner_named:
        del variables["PALIADIN_OWNER"]  # the default is whoever runs it: another one here
    wrong = [*problems(daemon), *outdated(daemon, version("paliadin"), variables)]
    found = [Finding("wrong", "daemon", text) for text in wrong]
    if not found:
        found = [Finding("ok", "daemon", "runs, with what this environment says")]
    if daemon.unit and daemon.unit.properties.get("UnitFileState") == "disabled":
        note = f"nothing starts it at the next boot: systemctl enable {daemon.unit.name}"
        found.append(Finding("note", "daemon", note))
    return found


# --- the state directory ------------------------------------------------------------------


def _state_dir(path: Path) -> list[Finding]:
    subject = f"state directory {path}"
    if not os.access(path, os.F_OK):
        return [Finding("note", subject, "does not exist yet; `run` makes it"), _room(path)]
    info = path.stat()
    if not stat.S_ISDIR(info.st_mode):
        place = shlex.quote(str(path))
        wrong = f"is no directory, so no answer can be kept: mv {place} {place}.aside"
        return [Finding("wrong", subject, wrong)]
    user, of = user_name(os.geteuid()), user_name(info.st_uid)
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        wrong = (
            f"belongs to user {of} and cannot be written by user {user}, so no answer "
            f"could be kept. If that user runs the daemon: {_AS_ROOT}; else: chown {user} {path}"
        )
        return [Finding("wrong", subject, wrong), _room(path)]
    found = [Finding("ok", subject, "can be written")]
    if info.st_uid != os.geteuid():
        note = (
            f"belongs to user {of}, as whom the daemon runs, and this is user {user}: "
            "what that user may not do does not show here"
        )
        found = [Finding("note", subject, note)]
    if info.st_mode & 0o077:
        open_ = f"is open to others, its files are not: chmod 700 {path}"
        found = [Finding("note", subject, open_)]
    if others := _of_others(path, info.st_uid):
        wrong = (
            f"{listed(others)} in it: not of user {of}, as whom the daemon runs, so that it cannot "
            f"write there: chown -R {of} {shlex.quote(str(path))}"
        )
        found.append(Finding("wrong", subject, wrong))
    way = Root(path.resolve(), info.st_uid)
    way.check()
    way.close()
    if "is writable by" in way.why:
        wrong = f"whoever may change it can take the outbox away: {way.why}"
        found.append(Finding("wrong", subject, wrong))
    return [*found, _room(path)]


def _of_others(path: Path, owner: int) -> list[str]:
    # As a copy that was made, or a command that was tried, as root leaves them.
    found = [(entry.name, entry.lstat()) for entry in path.iterdir()]
    return sorted(
        name for name, info in found if stat.S_ISREG(info.st_mode) and info.st_uid != owner
    )


def _room(path: Path) -> Finding:
    there = next(folder for folder in (path, *path.parents) if os.access(folder, os.F_OK))
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if free < _LEAST_FREE:
        return Finding(
            "wrong",
            "disk",
            f"{free // 2**20} MiB are free where the outbox is, and once it is full no answer is "
            f"accepted: make room; du -xh {there} | sort -h | tail shows where it went",
        )
    return Finding("ok", "disk", f"{free // 2**20} MiB are free where the outbox is")


def _room_for_answers(settings: Settings) -> Iterator[Finding]:
    # A writer that meets a full disk leaves an answer that is empty or cut, and nobody sees that.
    seen = set()
    for spec in settings.roots:
        with suppress(OSError):
            disk, device = os.statvfs(spec.path), spec.path.stat().st_dev
            free = disk.f_bavail * disk.f_frsize
            if free < settings.max_bytes and device not in seen:
                mount = f"$(df --output=target {shlex.quote(str(spec.path))} | tail -n 1)"
                wrong = (
                    f"{free // 2**10} KiB are free in {spec.path}, so that the agent's answers are "
                    f"cut or empty: make room; du -xh {mount} | sort -h | tail shows where it went"
                )
                yield Finding("wrong", "disk", wrong)
            seen.add(device)


def _outbox(settings: Settings, hosting: Hosting) -> list[Finding]:
    path = settings.state_dir / FILENAME
    try:
        with Outbox(path) as outbox:
            whole = outbox.check_pages(_READ_S)
            (service,) = outbox.transaction([outbox.service])
    except (FileNotFoundError, NotADirectoryError):
        return []  # `run` makes it, or the state directory's finding says why not
    except PermissionError:
        return []  # the state directory's finding says so
    except OutboxError as exc:
        return [Finding("wrong", "outbox", f"{exc}: {hosting.remedy(exc)}")]
    said = {root["path"] for root in service["roots"]}
    found = [Finding("ok", "outbox", "each page can be read")]
    if not whole:
        found = [Finding("note", "outbox", f"too large to be read within {_READ_S:.0f} s")]
    if said and said != {str(spec.path) for spec in settings.roots}:
        found.append(
            Finding(
                "wrong",
                "environment",
                f"the daemon watches {', '.join(sorted(said))}, which this environment does not "
                "say, so what is said here is not of the daemon: name the daemon's with "
                f"--env-file, or: systemctl restart {unit_name(settings.state_dir)}",
            )
        )
    return found


# --- the roots ----------------------------------------------------------------------------


def _roots(settings: Settings, *, named: bool) -> tuple[list[Finding], tuple[RootSpec, ...]]:
    # What is found, and the roots that answer: nothing else is asked of one that does not.
    found: list[Finding] = []
    answering = []
    for spec in settings.roots:
        said = _within(_READ_S, partial(_root, spec, settings.owner, named=named))
        if said is None:
            path = shlex.quote(str(spec.path))
            hangs = (
                f"{spec.path} does not answer: its disk hangs, or what serves its mount, which "
                f"findmnt -T {path} names; the kernel says more: dmesg | tail. Answers are taken "
                "again as soon as it does; if it never will, this ends what waits for it: "
                f"umount -f {path}; umount -l {path}"
            )
            found.append(Finding("wrong", _subject(spec), hangs))
        else:
            found += said
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


def _root(spec: RootSpec, owner: int, *, named: bool) -> list[Finding]:
    subject = _subject(spec)
    root = Root(spec.path, owner)
    root.check()
    names = None
    with suppress(OSError):
        names = root.names(always=True)  # that it cannot be listed becomes its state
    root.close()
    if root.state == "unreadable":
        return [Finding("wrong", subject, f"{root.why}: {_mend_unreadable(root, owner)}")]
    if root.state == "untrusted":
        mend = ""
        if "PALIADIN_OWNER" in root.why:
            mend = _mend_owner(root.step, owner, named=named)
        if "is no directory" in root.why:
            step = shlex.quote(str(root.step))
            mend = f": mv {step} {step}.aside"
        return [Finding("wrong", subject, f"nothing is taken from it, since {root.why}{mend}")]
    if root.state == "missing":
        make = f"install -d -m 700 -o {user_name(owner)} {shlex.quote(str(spec.path))}"
        return [Finding("note", subject, f"{root.why}; watched as soon as it is there: {make}")]
    found = [_hidden(subject, spec.path) or Finding("ok", subject, "is there and can be trusted")]
    if others := strays(names.names if names else []):
        ignored = f"holds what is no turn's and is ignored: {listed(others)}; {ID_RULE}"
        found.append(Finding("note", f"names in {spec.path}", ignored))
    return found


def _mend_owner(step: Path, owner: int, *, named: bool) -> str:
    if named and owner != 0:
        name = user_name(owner)
        chown = f"chown {name} {shlex.quote(str(step))}"
        boot = "and in /etc/tmpfiles.d/, where that makes it at each boot"
        return f": name that user there, or, if it is the agent's ({boot}): {chown}"
    # The directory is right: given to root, or to the sidecar's user, it would shut the agent out.
    found = "the agent's user"
    with suppress(OSError):
        found = user_name(step.lstat().st_uid)
    unset = "" if named else ", which is not set"
    return f"{unset}: PALIADIN_OWNER={found}, if that is the agent's user, and restart the sidecar"


def _mend_unreadable(root: Root, owner: int) -> str:
    match root.error:
        case errno.EACCES | errno.EPERM:
            return (
                f"only user {user_name(owner)} can, or who has CAP_DAC_READ_SEARCH, as the unit "
                f"has; to see it as that does: {_AS_ROOT}"
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


def _hidden(subject: str, path: Path) -> Finding | None:
    # Process 1 sees the host as it is. Who may not ask it is told nothing.
    try:
        seen, real = path.stat(), Path(f"{_HOST}{path}").stat()
    except FileNotFoundError:
        same = False
    except OSError:
        return None
    else:
        same = (seen.st_dev, seen.st_ino) == (real.st_dev, real.st_ino)
    if same:
        return None
    return Finding(
        "wrong",
        subject,
        "is not the host's directory but one of this process's own, where no answer is ever "
        "written: run it without PrivateTmp=, or mount the host's directory into the container",
    )


def _hides(settings: Settings, unit: Unit | None) -> list[Finding]:
    if unit is None:
        return []
    said, found = unit.properties, []
    seen = [spec.path for spec in settings.roots]
    if settings.callback_ca_file:
        seen.append(settings.callback_ca_file)
    for name, (harmless, places) in _HIDES.items():
        hidden = [str(path) for path in seen if any(path.is_relative_to(p) for p in places)]
        if said.get(name, "no") not in harmless and hidden:
            dropin = f"/etc/systemd/system/{unit.name}.d/{name}.conf"
            found.append(
                Finding(
                    "wrong",
                    f"unit {unit.name}",
                    f"has {name}={said[name]}, so the daemon does not see {', '.join(hidden)}, and "
                    f"no answer ever arrives: mkdir -p {dropin.rpartition('/')[0]} && printf "
                    f"'[Service]\\n{name}={harmless[-1]}\\n' > {dropin} && "
                    f"systemctl daemon-reload && systemctl restart {unit.name}",
                )
            )
    for path in seen:
        for place in said.get("InaccessiblePaths", "").split():
            if path.is_relative_to(place.lstrip("-+")):
                wrong = (
                    f"has InaccessiblePaths={place}, so the daemon does not see {path}: move it, "
                    f"since that place may hold secrets, then: systemctl restart {unit.name}"
                )
                found.append(Finding("wrong", f"unit {unit.name}", wrong))
    for line in complaints(unit):
        wrong = (
            f"has what systemd does not take, so it is not as somebody meant it ({line}): "
            f"systemctl cat {unit.name} shows where. Mend it, then: "
            f"systemctl daemon-reload && systemctl restart {unit.name}"
        )
        found.append(Finding("wrong", f"unit {unit.name}", wrong))
    return found or [Finding("ok", f"unit {unit.name}", "sees the real directories")]


# --- what the system gives ----------------------------------------------------------------


def _events(settings: Settings) -> Finding:
    roots = [spec.path for spec in settings.roots if os.access(spec.path, os.R_OK)]
    why = why_no_events(roots, inotify=settings.events == "inotify")
    count = len(settings.roots)
    if why is None:
        return Finding("ok", "file events", f"come by {settings.events}: an answer is seen at once")
    return Finding(
        "wrong",
        "file events",
        f"cannot be had ({why}), so an answer is only seen by the next scan. {count} instances of "
        f"inotify and {count} watches are needed, the rest of {_limit('instances')} and "
        f"{_limit('watches')} is other programs': printf 'fs.inotify.max_user_instances=512\\n"
        "fs.inotify.max_user_watches=524288\\n' > /etc/sysctl.d/inotify.conf && sysctl --system",
    )


def _limit(of: str) -> str:
    try:
        return Path(f"/proc/sys/fs/inotify/max_user_{of}").read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


def _leases(settings: Settings) -> list[Finding]:
    subject = "read leases"
    found = []
    for spec in settings.roots:
        kind = _unknown_writers_on(spec.path)
        if kind is not None:
            note = (
                f"prove nothing in {spec.path}: it is on a file system ({kind}) that somebody may "
                "write from another machine or behind another mount. An answer there waits until "
                f"it was quiet for {settings.quiet_s:g} s (PALIADIN_QUIET_S), also with its end "
                "mark, and a writer that pauses for longer is pushed in part first: let the agent "
                "write to a local disk or a tmpfs"
            )
            found.append(Finding("note", subject, note))
    return found or [_lease(settings)]


def _unknown_writers_on(path: Path) -> str | None:
    # The type of its file system, if that is not one that this kernel alone writes.
    try:
        fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None  # the root's finding says so
    try:
        kind = type_of(fd)
    finally:
        os.close(fd)
    return None if kind in LOCAL else kind or "unknown: /proc tells nothing of it"


def _lease(settings: Settings) -> Finding:
    subject = "read leases"
    owner = settings.owner
    given = _lease_given(settings)
    if given is None:
        given = os.geteuid() == owner or _has_capability(_CAP_LEASE)
    if given:
        return Finding("ok", subject, "can be taken: a closed file is known at once")
    return Finding(
        "note",
        subject,
        f"cannot be taken on files of user {user_name(owner)}, so every answer waits until its "
        "file was quiet: run as that user, or with CAP_LEASE and CAP_DAC_READ_SEARCH, as the unit "
        "does",
    )


def _lease_given(settings: Settings) -> bool | None:
    # Tried on the first answer that lies there; None where none does.
    for spec in settings.roots:
        root = Root(spec.path, settings.owner)
        root.check()
        try:
            names = root.names(always=True)
            for name in filter(turn_id_of, names.names if names else ()):
                fd = cast("int", root.fd)
                file = TurnFile(fd, name, settings.owner, leases_on=root.leases_on)
                with closing(file):
                    look = file.look()
                if look.trusted:
                    return look.being_written is not None
        except (OSError, Unreadable):
            continue  # gone between two calls, or not ours to open: the next root
        finally:
            root.close()
    return None


def _secrets(settings: Settings) -> Finding:
    count = len(settings.secrets)
    if count == 1:
        return Finding("ok", "callback secret", "one")
    return Finding("note", "callback secret", f"{count}, as during a rotation; both ends know all?")


def _exposed(paths: Iterable[Path]) -> Iterator[Finding]:
    for path in paths:
        try:
            shown = path.stat().st_mode & stat.S_IROTH and _SECRET.search(path.read_bytes())
        except OSError:
            continue  # there is none
        if shown:
            wrong = (
                f"{path} can be read by everybody, who can then forge callbacks: chmod 600 {path}"
            )
            yield Finding("wrong", "secret's file", wrong)


def _url(settings: Settings) -> Finding:
    if settings.callback_insecure:
        return Finding(
            "note",
            "callback",
            f"{settings.callback_url}: PALIADIN_CALLBACK_INSECURE=1 allows answers to be read "
            "on the way; unset it where the way is not a host's own",
        )
    return Finding("ok", "callback", settings.callback_url)


#: Source: linux/capability.h.
_CAP_LEASE = 28


def _has_capability(number: int) -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as lines:  # noqa: PTH123 - no path of ours
            effective = next(line for line in lines if line.startswith("CapEff:"))
    except (OSError, StopIteration):
        return False
    return bool(int(effective.split()[1], 16) >> number & 1)
