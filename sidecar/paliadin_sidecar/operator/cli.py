"""What an operator types."""

from __future__ import annotations

# isort: off
import paliadin_sidecar.host.pid1  # noqa: F401 - imported for what it does, and before the others

# isort: on
import errno
import os
import pwd
import re
import signal
import sqlite3
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import msgspec

from paliadin_sidecar.errors import (
    BadSettings,
    NoSuchTurn,
    OutboxError,
    SidecarError,
    StateDirError,
    Unwritable,
)
from paliadin_sidecar.host import state_directory as statedir
from paliadin_sidecar.host import streams
from paliadin_sidecar.operator import running as daemon
from paliadin_sidecar.operator.advice import Hosting, is_unit, unit_name
from paliadin_sidecar.operator.diagnosis import (
    Finding,
    answer_name,
    failing_problems,
    likely_cause,
    pause_problem,
    waiting_problems,
)
from paliadin_sidecar.operator.lookup import ID_RULE, find_turn, listed, strays
from paliadin_sidecar.operator.terminal import local_time, print_json, print_table, utc_time
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.outbox import Outbox
from paliadin_sidecar.settings import DEFAULT_ENV_FILE, Settings, merged_environment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from paliadin_sidecar.operator.running import Daemon

__all__ = ["main"]

_NO, _CONFIG = 1, 78  # 78 is EX_CONFIG of sysexits.h: systemd is told not to restart on it
#: The whole stop stays within 10 s.
_STOP_S = 9.0
#: So many names of a root are looked through for those that are ignored.
_MAX_LISTED = 10_000
#: Undelivered for longer than this is wrong, whatever the reason; the alert has the same limit.
_OVERDUE_S = 300.0
#: A directory that is missing for longer than this is wrong; the alert has the same limit.
_MISSING_S = 600.0
#: Tried so often without success is wrong at once: it takes a second or two.
_TRIED_OFTEN = 3
#: A turn that was given up is wrong for a day; then it is history that `turns` shows.
_DEAD_S = 86_400.0
_SECRET_FROM = (
    "PALIADIN_CALLBACK_SECRET", "PALIADIN_CALLBACK_SECRET_FILE", "CREDENTIALS_DIRECTORY",
)  # fmt: skip
_STATES = ("pending", "delivered", "dead", "failed", "superseded", "history")

_env_file = click.option(
    "--env-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Read variables from this file where the environment does not set them. "
    "Default: /etc/paliadin/sidecar.env, if it is there.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, for a program.")


class _Commands(click.Group):
    """The commands, on streams that may be closed, full, or of another encoding."""

    def main(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - click's own signature
        """Run the command that was typed, and end the process."""
        streams.prepare()
        try:
            return super().main(*args, **kwargs)
        except OSError as exc:
            if not streams.has_failed(sys.stdout):
                raise
            sys.exit(f"paliadin-sidecar: the output cannot be written: {exc.strerror}")


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paliadin")
def main() -> None:
    """Push completed turn files to paliad's callback."""


@main.command()
@_env_file
@click.option("--quarantine", is_flag=True, help="Move a damaged outbox aside and begin anew.")
def run(env_file: Path | None, *, quarantine: bool) -> None:
    """Run the daemon in the foreground. SIGTERM ends it, a second one ends it at once."""
    # structlog loads it where it is installed: 6 MB that a daemon has no use for.
    sys.modules["rich"] = None  # type: ignore[assignment]  # what makes an import fail
    # Imported here: the other commands start without an event loop, HTTP and a watcher.
    import anyio  # noqa: PLC0415

    from paliadin_contract.trace import safe_trace  # noqa: PLC0415
    from paliadin_sidecar import daemon as service  # noqa: PLC0415
    from paliadin_sidecar.audit.lines import Audit  # noqa: PLC0415
    from paliadin_sidecar.host.threads import Deadline  # noqa: PLC0415

    deadline: Deadline | None = None
    try:
        with _clear_errors():
            environ = dict(os.environ)
            # systemd has read the unit's EnvironmentFile= already, and the default file may be
            # another instance's: what a unit leaves unset stays unset.
            if env_file or not is_unit():
                environ = merged_environment(os.environ, env_file)
            try:
                settings = Settings.from_environment(environ)
                deadline = Deadline(_STOP_S)
                told = partial(
                    service.run,
                    quarantine=quarantine,
                    on_stop=deadline.begin,
                    unknown=Settings.unknown_variables(environ),
                )
                anyio.run(told, settings, _stdout())
            except BaseException as exc:  # noqa: BLE001 - its text may quote what no log may hold
                known = _first_known(exc)
                if known is not None:
                    raise known from None
                trace = safe_trace(exc)
                Audit(sys.stderr).line("service.crashed", time.time(), {"trace": trace})
                sys.exit(_NO)
            deadline.done(0)
    except SystemExit as exc:
        if deadline is not None:
            deadline.done(exc.code if isinstance(exc.code, int) else _NO)
        raise


@main.command()
@_env_file
@click.option(
    "--ping",
    "send_ping",
    is_flag=True,
    help="Also ping the receiver: signed well, then with a wrong signature.",
)
@_json
def check(env_file: Path | None, *, send_ping: bool, as_json: bool) -> None:
    """Say whether everything is as it must be, and what mends it where not."""
    import anyio  # noqa: PLC0415 - as in `run`

    from paliadin_sidecar.operator import check as doctor  # noqa: PLC0415
    from paliadin_sidecar.operator.ping import ping  # noqa: PLC0415

    with _clear_errors():
        environ = merged_environment(os.environ, env_file)
        try:
            state_dir = Settings.find_state_dir(environ)
            if os.geteuid() and state_dir.is_dir() and not os.access(state_dir, os.R_OK | os.X_OK):
                # Most of what follows would look wrong to this user, and not be so.
                raise PermissionError(errno.EACCES, "", str(state_dir))
            sidecar = daemon.look(state_dir, env_file)
            environ = _as_the_unit(environ, env_file or DEFAULT_ENV_FILE, sidecar)
            if not any(map(environ.get, _SECRET_FROM)):
                # An operator's command signs with the service's secret.
                found = doctor.credentials(state_dir, env_file or DEFAULT_ENV_FILE)
                environ |= {"CREDENTIALS_DIRECTORY": str(found)} if found else {}
            settings = Settings.from_environment(environ)
        except BadSettings as exc:
            if not as_json:
                raise
            wrong = [Finding("wrong", "configuration", one) for one in exc.problems]
            print_json([msgspec.to_builtins(finding) for finding in wrong])
            sys.exit(_CONFIG)
    settings_file = env_file or DEFAULT_ENV_FILE
    named = environ.get("PALIADIN_CALLBACK_SECRET_FILE") or settings_file.parent / "callback-secret"
    findings = doctor.examine(
        settings,
        (settings_file, Path(named)),
        owner_named=bool(environ.get("PALIADIN_OWNER")),
        unknown=Settings.unknown_variables(environ),
        daemon=sidecar,
    )
    if send_ping:
        findings += anyio.run(ping, settings)
    findings = [replace(f, message=sidecar.hosting.fitted(f.message)) for f in findings]
    if as_json:
        print_json([msgspec.to_builtins(finding) for finding in findings])
    else:
        print_table(("", "what", "finding"), [(f.level, f.subject, f.message) for f in findings])
    sys.exit(_NO if any(f.level == "wrong" for f in findings) else 0)


@main.command()
@_env_file
@_json
@click.option("--quiet", is_flag=True, help="Print nothing; the exit code tells.")
def status(env_file: Path | None, *, as_json: bool, quiet: bool) -> None:
    """Say how the daemon does; exit 1 when something is wrong."""
    with _opened(env_file) as (state_dir, outbox):
        found = _status(daemon.look(state_dir, env_file), outbox)
    if as_json:
        print_json(found)
    elif not quiet:
        _print_status(found)
    sys.exit(_NO if found["problems"] else 0)


@main.command()
@_env_file
@click.option("--state", type=click.Choice(_STATES), help="Only these.")
@click.option("--since", default="0", help="Accepted since: 30m, 12h, 7d, or 2026-11-22T08:00.")
@click.option("--limit", default=50, type=click.IntRange(1, 100_000), show_default=True)
@_json
def turns(
    env_file: Path | None, state: str | None, since: str, limit: int, *, as_json: bool
) -> None:
    """List deliveries, the newest first."""
    with _opened(env_file) as (_, outbox):
        rows = outbox.deliveries(state, _since(since), limit)
        number = outbox.count_deliveries(state, _since(since))
    more = f"{len(rows)} of {number} deliveries; --limit {number} shows all"
    if as_json:
        print_json([_with_times(row) for row in rows])
        if number > len(rows):
            click.echo(more, err=True)
        return
    if not rows:
        when = "" if since == "0" else f" accepted since {local_time(_since(since))}"
        click.echo("No deliveries" + (f" that are {state}" if state else "") + when)
        return
    print_table(
        ("turn", "rev", "backend", "user", "state", "tries", "last answer", "bytes", "accepted"),
        [
            (
                row["turn_id"],
                row["revision"],
                f"{row['backend']}/{row['persona']}",
                row["user"] or "",
                f"{row['state']} ({row['reason']})" if row["reason"] else row["state"],
                row["attempts"],
                answer_name(*_last_answer(row)),
                row["bytes"],
                local_time(row["accepted_at"]),
            )
            for row in rows
        ],
    )
    failed = {_last_answer(row) for row in rows if row["state"] in {"pending", "dead"}}
    for answer in sorted(failed, key=str):
        if any(answer):
            click.echo(f"{answer_name(*answer)}: {likely_cause(*answer)}")
    if number > len(rows):
        click.echo(more)


def _last_answer(row: Mapping[str, Any]) -> tuple[int | None, str | None, str | None]:
    return row["last_status"], row["last_error"], row["last_detail"]


@main.command()
@_env_file
@click.argument("turn_ids", metavar="TURN_ID...", nargs=-1, required=True)
@_json
def show(env_file: Path | None, turn_ids: Sequence[str], *, as_json: bool) -> None:
    """Tell all that happened to turns, by their own ids or those they were submitted under.

    The beginning of an id is enough where no other id begins so.
    """
    with _opened(env_file) as (_, outbox):
        ids, missed = _find_turns(outbox, turn_ids)
        found = [turn for id_ in ids.values() for turn in outbox.timelines(id_)]
    if as_json:
        print_json([_timeline_json(turn) for turn in found])
    for turn in [] if as_json else found:
        _print_timeline(turn)
    sys.exit(_NO if missed else 0)


@main.command()
@_env_file
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--follow", "-f", is_flag=True, help="Go on with what happens, until Ctrl-C.")
def log(env_file: Path | None, turn_ids: Sequence[str], *, follow: bool) -> None:
    """Print the events, as the journal has them, for a person; of these turns, or all.

    The beginning of an id is enough where no other id begins so.
    """
    from paliadin_sidecar.audit.lines import Audit, unconfirmable  # noqa: PLC0415
    from paliadin_sidecar.operator import eventlog  # noqa: PLC0415 - structlog is slow to load

    audit, missed = Audit(_stdout(), readable=True), False
    with _opened(env_file) as (state_dir, outbox):
        key = statedir.journal_key(state_dir)
        if follow:
            signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
            ids = eventlog.find_or_await(outbox, turn_ids)
            events = eventlog.follow(outbox, ids, _stdout())
        else:
            found, missed = _find_turns(outbox, turn_ids)
            # Where none of those that were named is known, it is not all that is meant.
            events = eventlog.past(outbox, found.values()) if found or not turn_ids else iter(())
        for event in events:
            audit.line(event.name, event.at, unconfirmable(event.fields, key))
    sys.exit(_NO if missed else 0)


@main.command()
@_env_file
@click.argument("turn_ids", metavar="[TURN_ID]...", nargs=-1)
@click.option("--dead", is_flag=True, help="All that were given up.")
@click.option("--since", help="All accepted since: 30m, 12h, 7d, or 2026-11-22T08:00.")
def replay(
    env_file: Path | None, turn_ids: Sequence[str], *, dead: bool, since: str | None
) -> None:
    """Send again what was settled, with the same id and body.

    The beginning of an id is enough where no other id begins so.
    """
    if not turn_ids and not dead and since is None:
        raise click.UsageError("name turns, or --dead, or --since")
    if turn_ids and (dead or since is not None):
        raise click.UsageError("name turns, or say --dead and --since, not both")
    from_s = _since(since or "0")
    with _opened(env_file) as (state_dir, outbox):
        ids, unknown = _find_turns(outbox, turn_ids, "{}: not known: nothing to replay")
        if turn_ids and not ids:
            sys.exit(_NO)
        named = tuple(dict.fromkeys(ids.values()))
        (results,) = outbox.transaction(
            [
                lambda: [
                    outbox.replay(turn_id=turn_id, dead=dead, since=from_s)
                    for turn_id in (named or (None,))
                ]
            ]
        )
        alive = statedir.is_alive(state_dir)
    sent, without_body = (sum(column) for column in zip(*results, strict=True))
    click.echo(f"{sent} will be sent again" + ("" if alive else " as soon as the daemon runs"))
    missed = [t for t, r in zip(named, results, strict=False) if r == (0, 0)]
    for turn_id in missed:
        click.echo(f"{turn_id}: not settled yet: nothing to replay", err=True)
    if without_body:
        click.echo(
            f"{without_body} cannot be: bodies are let go 72 h after their acknowledgement, or "
            "earlier where the outbox takes more than PALIADIN_MAX_OUTBOX",
            err=True,
        )
    sys.exit(_NO if unknown or missed or without_body else 0)


def _find_turns(
    outbox: Outbox, given: Sequence[str], unknown: str = ""
) -> tuple[dict[str, str], bool]:
    # By what was typed the id that it means; and whether one means none, or several, which is said.
    ids, missed = {}, False
    for one in given:
        try:
            ids[one] = find_turn(outbox, one)
        except NoSuchTurn as exc:
            click.echo(unknown.format(one) if unknown and exc.is_unknown else exc, err=True)
            missed = True
    return ids, missed


def _stdout() -> TextIO:
    # A daemon that was started with stdout closed still delivers; its rows keep the events.
    return sys.stdout or Path(os.devnull).open("w", encoding="utf-8")


# --- errors -------------------------------------------------------------------------------


@contextmanager
def _clear_errors(env_file: Path | None = None) -> Iterator[None]:
    try:
        yield
    except BadSettings as exc:
        for problem in _fitted(exc.problems, env_file):
            click.echo(problem, err=True)
        sys.exit(_CONFIG)
    except PermissionError as exc:
        click.echo(f"{exc.filename} may not be read by this user. {_sudo(exc.filename)}", err=True)
        sys.exit(_NO)
    except SidecarError as exc:
        remedy = exc.remedy
        if isinstance(exc, OutboxError):
            remedy = _hosting(exc.path.parent, env_file).remedy(exc)
        mark = "." if remedy[:1].isupper() else ":"
        click.echo(f"{exc}{mark} {remedy}" if remedy else exc, err=True)
        sys.exit(exc.exit_code)


def _fitted(problems: Sequence[str], env_file: Path | None) -> list[str]:
    # Of an operator's command, whose environment is not the unit's.
    if is_unit():
        return list(problems)
    try:
        state_dir = Settings.find_state_dir(merged_environment(os.environ, env_file))
    except (BadSettings, PermissionError):
        return list(problems)
    sidecar = daemon.look(state_dir, env_file)
    return sidecar.hosting.fitted_settings(problems) + daemon.problems(sidecar)


def _as_the_unit(environ: Mapping[str, str], env_file: Path, sidecar: Daemon) -> dict[str, str]:
    # Drop-ins may say more than the file, and later ones other things. A file that is not the
    # unit's is an operator's trial.
    unit = sidecar.unit
    if unit is None or str(env_file) not in unit.environment_files:
        return dict(environ)
    said = dict(unit.environment)
    for path in map(Path, unit.environment_files):
        with suppress(BadSettings):
            said |= merged_environment({}, path)
    return dict(environ) | said | dict(os.environ)


def _hosting(state_dir: Path, env_file: Path | None) -> Hosting:
    if is_unit():
        return Hosting(unit_name(state_dir))
    return daemon.look(state_dir, env_file).hosting


def _first_known(exc: BaseException) -> BaseException | None:
    # What `_clear_errors` has words for, from inside the task groups' exceptions.
    if isinstance(exc, BaseExceptionGroup):
        return next(filter(None, map(_first_known, exc.exceptions)), None)
    known = (BadSettings, StateDirError, OutboxError)
    return exc if isinstance(exc, (*known, KeyboardInterrupt, SystemExit)) else None


@contextmanager
def _opened(env_file: Path | None) -> Iterator[tuple[Path, Outbox]]:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `… | head` is no error
    with _clear_errors(env_file):
        state_dir = Settings.find_state_dir(merged_environment(os.environ, env_file))
        path = state_dir / FILENAME
        try:
            with path.open("rb"):
                pass
            outbox = Outbox(path)
        except (FileNotFoundError, NotADirectoryError):
            click.echo(
                f"There is no outbox in {state_dir}: the daemon makes one when it starts. Is "
                "PALIADIN_STATE_DIR the daemon's?",
                err=True,
            )
            for problem in daemon.problems(daemon.look(state_dir, env_file)):
                click.echo(problem, err=True)
            sys.exit(_NO)
        except Unwritable:
            raise PermissionError(errno.EACCES, "", str(path)) from None
        with outbox:
            try:
                yield state_dir, outbox
            except sqlite3.Error as exc:
                raise outbox.translated(exc) from None


def _sudo(filename: str) -> str:
    typed = " ".join(["paliadin-sidecar", *sys.argv[1:]])
    if sys.argv[1:2] == ["check"]:
        # The daemon's user has the unit's capabilities in the unit alone, and would see less.
        return f"Try: sudo {typed}"
    path = Path(filename)
    while not os.access(path.parent, os.X_OK) and path != path.parent:
        path = path.parent
    try:
        owner = pwd.getpwuid(path.stat().st_uid).pw_name
    except (OSError, KeyError):
        owner = "root"
    return f"Try: sudo -u {owner} {typed}"


# --- what is shown ------------------------------------------------------------------------


def _status(sidecar: Daemon, outbox: Outbox) -> dict[str, Any]:
    now = time.time()
    service = outbox.service()
    oldest_s = outbox.oldest_pending_s()
    dead = outbox.dead_since(now - _DEAD_S)
    problems = daemon.problems(sidecar)
    failing = outbox.failing(attempts=_TRIED_OFTEN, dead_since=now - _DEAD_S)
    if service["paused_at"] is not None:
        since = local_time(service["paused_at"])
        problems.append(pause_problem(service["paused_for"], since, failing))
    problems += [
        f"root {root['path']}: {root['why']}{_since_when(root)}; paliadin-sidecar check says what "
        "mends it"
        for root in service["roots"]
        if root["state"] in ("untrusted", "unreadable")
        or (root["state"] == "missing" and now - root.get("since", now) > _MISSING_S)
    ]
    problems += waiting_problems(service["roots"], local_time)
    if oldest_s is not None and oldest_s > _OVERDUE_S:
        problems.append(f"a turn has been undelivered for {timedelta(seconds=round(oldest_s))}")
    problems += failing_problems(failing, dead=dead, paused_for=service["paused_for"])
    return {
        "alive": sidecar.alive,
        "problems": [sidecar.hosting.fitted(problem) for problem in problems],
        "counts": dict.fromkeys(_STATES, 0) | outbox.counts(),
        "outbox_bytes": outbox.used_bytes(),
        "oldest_undelivered_s": oldest_s,
        "paused": service["paused_at"] is not None,
        "paused_for": service["paused_for"],
        "roots": [_with_times(root, "since") for root in service["roots"]],
    }


def _since_when(root: Mapping[str, Any]) -> str:
    # A daemon of an older version does not say.
    return f" (since {local_time(root['since'])})" if "since" in root else ""


def _print_status(found: Mapping[str, Any]) -> None:
    click.echo("running" if found["alive"] else "not running")
    for problem in found["problems"]:
        click.echo(f"WRONG: {problem}")
    print_table(("state", "deliveries"), list(found["counts"].items()))
    if found["oldest_undelivered_s"] is not None:
        age = timedelta(seconds=round(found["oldest_undelivered_s"]))
        click.echo(f"oldest undelivered: {age}")
    print_table(
        ("root", "path", "state", "turn files", "others"),
        [
            (
                f"{root['backend']}/{root['persona']}",
                root["path"],
                root["state"],
                root["turn_files"],
                root["foreign_files"],
            )
            for root in found["roots"]
        ],
    )
    _print_strays(found["roots"])


def _print_strays(roots: Sequence[Mapping[str, Any]]) -> None:
    for root in roots:
        if root["state"] != "armed" or not root["foreign_files"]:
            continue  # one that does not answer is not asked
        try:
            with os.scandir(root["path"]) as names:
                found = strays(entry.name for entry in islice(names, _MAX_LISTED))
        except OSError:
            continue  # its state says so
        if found:
            click.echo(f"ignored in {root['path']}: {listed(found)} ({ID_RULE})")


def _print_timeline(turn: Mapping[str, Any]) -> None:
    about = f"{turn['turn_id']} {turn['backend']}/{turn['persona']}"
    if turn["submitted_turn_id"]:
        about += f", submitted as {turn['submitted_turn_id']} by {turn['user']}"
    click.echo(about)
    shown = {"turn_id", "backend", "persona", "submitted_turn_id", "user", "sha256", "id", "at"}
    print_table(
        ("when", "event", "what"),
        [
            (
                local_time(event["at"]),
                event["event"],
                " ".join(
                    f"{k}={v}" for k, v in event.items() if k not in shown | {"event", "webhook_id"}
                ),
            )
            for event in turn["events"]
        ],
    )


def _timeline_json(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **turn,
        "deliveries": [_with_times(row) for row in turn["deliveries"]],
        "events": [{**event, "at": utc_time(event["at"])} for event in turn["events"]],
    }


def _with_times(row: Mapping[str, Any], *also: str) -> dict[str, Any]:
    return {
        name: utc_time(value) if name.endswith(("_at", *also)) and value is not None else value
        for name, value in row.items()
        if name != "id"
    }


def _since(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text, re.ASCII)
    if match:
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]]
        return time.time() - int(match[1]) * unit
    if text == "0":
        return 0.0
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no age such as 30m, 12h or 7d, and no date such as 2026-11-22T08:00",
            param_hint="--since",
        ) from None


if __name__ == "__main__":
    main()
