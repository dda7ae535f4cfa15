"""What systemd knows of the daemon's unit, for an operator's commands.

Pure, apart from `read` and `complaints`, which ask it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: A command waits no longer for systemd's answer.
_READ_S = 5.0
_PROPERTIES = (
    "LoadState", "LoadError", "ActiveState", "SubState", "Result", "ExecMainCode", "ExecMainStatus",
    "UnitFileState", "NeedDaemonReload", "User", "Environment", "EnvironmentFiles", "ExecStart",
    "PrivateTmp", "ProtectHome", "InaccessiblePaths", "FragmentPath",
)  # fmt: skip
#: Lines of the journal to look for the last words in, and how many of these are shown.
_LINES, _MAX_WORDS, _WORD_CHARS = 60, 4, 600
_WARNING = 4  # of syslog(3): what systemd says as loudly as this is about a failure

#: What systemd says when `StartLimitBurst=` is met; `Result` may still be that of the last failure.
_GAVE_UP = "Start request repeated too quickly"

#: What backoff.conf says to a systemd that is older than it is known to be.
_LATER = re.compile(r"RestartSteps|RestartMaxDelaySec")

#: What systemd itself could not do before the program ran, by exit status (systemd.exec(5)).
_STEPS = {
    200: "CHDIR", 202: "FDS", 203: "EXEC", 205: "LIMITS", 209: "STDOUT", 216: "GROUP", 217: "USER",
    218: "CAPABILITIES", 226: "NAMESPACE", 228: "SECCOMP", 238: "STATE_DIRECTORY",
    243: "CREDENTIALS",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A unit that systemd has loaded, or tried to.

    Attributes:
        name: with its suffix: `paliadin-sidecar.service`.
        properties: as `systemctl show` prints them; one that it does not know is missing.
        words: the last lines about a failure, the oldest first.
    """

    name: str
    properties: Mapping[str, str]
    words: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """Variables of `Environment=`, in the unit and its drop-ins."""
        try:
            words = shlex.split(self.properties.get("Environment", ""))
        except ValueError:  # quoted as only systemd reads it
            return {}
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def environment_files(self) -> list[str]:
        """Paths of `EnvironmentFile=`; the last one that names a variable counts."""
        files = self.properties.get("EnvironmentFiles", "")
        return re.findall(r"^(/.*?) \(ignore_errors=", files, re.MULTILINE)

    @property
    def program(self) -> str:
        """What `ExecStart=` runs; empty where there is none."""
        found = re.search(r"path=([^ ;]+)", self.properties.get("ExecStart", ""))
        return found[1] if found else ""


def read(name: str) -> Unit | None:
    """Ask systemd; None where it has no such unit, or there is no systemd.

    Args:
        name: the unit's, with its suffix.
    """
    shown = _output("systemctl", "show", f"--property={','.join(_PROPERTIES)}", "--", name)
    unit = parse(name, shown)
    if unit is None or unit.properties.get("ActiveState") == "active":
        return unit
    lines = _output("journalctl", "-u", name, "-n", str(_LINES), "-o", "json", "--no-pager")
    return Unit(name, unit.properties, last_words(name, lines.splitlines()))


def complaints(unit: Unit) -> list[str]:
    """What systemd ignores or refuses in the unit's file and its drop-ins: its own lines."""
    path = unit.properties.get("FragmentPath")
    output = _output("systemd-analyze", "verify", path, stream="stderr") if path else ""
    # Of others, which this one needs, it complains as well.
    return [line for line in output.splitlines() if unit.name in line and not _LATER.search(line)]


def _output(program: str, *args: str, stream: str = "stdout") -> str:
    command = shutil.which(program)
    if command is None:
        return ""
    try:
        done = subprocess.run(  # noqa: S603 - the system's own, with our words
            [command, *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=_READ_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    output: bytes = getattr(done, stream)
    return output.decode(errors="replace")


def parse(name: str, shown: str) -> Unit | None:
    """A unit of what `systemctl show` printed; None where it knows none of this name."""
    properties: dict[str, str] = {}
    for line in shown.splitlines():
        key, equals, value = line.partition("=")
        if equals:  # a property that is a list comes once for each item
            properties[key] = f"{properties[key]}\n{value}" if key in properties else value
    if properties.get("LoadState") in {None, "not-found"}:
        return None
    return Unit(name, properties)


def last_words(name: str, lines: Iterable[str]) -> tuple[str, ...]:
    """What the last run of a unit, and systemd about it, said of a failure.

    Args:
        name: the unit's.
        lines: the journal's, as JSON.
    """
    found: list[tuple[str, str]] = []
    for line in lines:
        try:
            entry: dict[str, Any] = json.loads(line)
            text, priority = str(entry["MESSAGE"]), int(entry.get("PRIORITY", 6))
        except (ValueError, TypeError, KeyError):
            continue  # cut, or binary
        of_itself = entry.get("_SYSTEMD_UNIT") == name
        if _is_failure(text) if of_itself else _is_reason(text, priority):
            run = entry.get("_SYSTEMD_INVOCATION_ID" if of_itself else "INVOCATION_ID", "")
            found.append((str(run), text.strip()[:_WORD_CHARS]))
    last_run = found[-1][0] if found else ""
    words = dict.fromkeys(text for run, text in found if run == last_run)
    return tuple(words)[-_MAX_WORDS:]


def _is_reason(line: str, priority: int) -> bool:
    # What systemd says last of any failure repeats its properties; what it goes on without, and
    # that it gave up, is no reason. That a command beside the program failed is said less loudly.
    if re.search(r"Failed with result|Failed to start |, ignoring|" + _GAVE_UP, line):
        return False
    return priority <= _WARNING or "Control process exited" in line


def _is_failure(line: str) -> bool:
    # Its events are lines of JSON; errors before it could open its log are sentences.
    return not line.startswith("{") or '"level":"error"' in line


def cause(unit: Unit) -> str:
    """Why its daemon does not run, in one sentence without a full stop and without the cure."""
    said, ended = explain(unit), _ended(unit)
    if not said.startswith(ended):
        return said.partition(": ")[0]
    status = int(unit.properties.get("ExecMainStatus") or 0)
    why = _CAUSES.get(status) or next(iter(unit.words), "")
    return f"{ended}: {why}" if why else ended


def explain(unit: Unit) -> str:
    """Why its daemon does not run, and what mends that, as one sentence without a full stop."""
    properties = unit.properties
    if "masked" in properties.get("LoadState", "") + properties.get("UnitFileState", ""):
        return f"{unit.name} is masked: systemctl unmask {unit.name} && systemctl start {unit.name}"
    if properties["LoadState"] != "loaded":
        why = properties.get("LoadError", properties["LoadState"])
        return (
            f"{unit.name} cannot be loaded ({why}): systemd-analyze verify {unit.name} shows why. "
            f"Mend it; then: systemctl daemon-reload && systemctl restart {unit.name}"
        )
    state = properties.get("ActiveState", "")
    if state == "active":
        return f"{unit.name} is active and holds no outbox: does PALIADIN_STATE_DIR name its own?"
    if state == "inactive" or (state == "deactivating" and properties.get("Result") == "success"):
        verb = "enable --now" if properties.get("UnitFileState") == "disabled" else "start"
        return f"{unit.name} was stopped, or never started: systemctl {verb} {unit.name}"
    return ". ".join(filter(None, (_ended(unit), _last_words(unit), _remedy(unit))))


#: What an exit status means that is the program's or systemd's own.
_CAUSES = {
    78: "the configuration is wrong",
    203: "the program is missing, or may not be executed",
    216: "its group is not on this host",
    217: "its user is not on this host",
    226: "a directory that it names cannot be had",
    238: "its state directory is none",
    243: "the file of its secret cannot be read",
}
_MAKE_USER = (
    "install -D -m 644 systemd/paliadin-sidecar.sysusers.conf "
    "/etc/sysusers.d/paliadin-sidecar.conf && systemd-sysusers, in the checkout"
)


def _ended(unit: Unit) -> str:
    properties = unit.properties
    status = int(properties.get("ExecMainStatus") or 0)
    how = properties.get("Result", "")
    if how == "exit-code" and not status:
        how = "a command of its ExecStartPre= or the like"  # the program itself did not fail
    elif how == "exit-code":
        step = f"/{_STEPS[status]}" if status in _STEPS else ""
        how = f"exit status {status}{step}"
    elif how == "signal":
        how = f"signal {status}"
    if properties.get("ActiveState") == "activating":
        again = "and systemd starts it again and again"
        return f"{unit.name} ends with {how}, {again}" if how != "success" else "it is starting"
    return f"{unit.name} has failed with {how}"


def _last_words(unit: Unit) -> str:
    words = " | ".join(unit.words)
    return f"Its last words: {words}" if words else f"journalctl -u {unit.name} -n 50 says more"


def _remedy(unit: Unit) -> str:
    properties = unit.properties
    user, status = properties.get("User") or "root", int(properties.get("ExecMainStatus") or 0)
    program = re.sub(r"/bin/[^/]*$", "", unit.program)
    remedies = {
        78: "Mend the configuration",
        203: f"{unit.program} is missing, or user {user} may not execute it, as where it was "
        f"installed under umask 077. Install it anew, or: chmod -R go+rX {program}",
        216: f"The group of the unit is not on this host: {_MAKE_USER}",
        217: f"There is no user {user} on this host: {_MAKE_USER}",
        226: "A directory that the unit names cannot be had: mend that",
        238: "What StateDirectory= names is no directory of the unit's user: see what is there "
        "(ls -ld /var/lib/*), and move it away",
        243: "The secret's file, which LoadCredential= names, cannot be read: systemctl cat "
        f"{unit.name} | grep LoadCredential. Put the secret there, the same as paliad has",
    }
    remedy = remedies.get(status) if properties.get("Result") == "exit-code" else None
    if properties.get("Result") == "resources":
        files = ", ".join(unit.environment_files)
        remedy = f"What the unit needs cannot be had, as its EnvironmentFile= ({files}): mend that"
    # Where systemd gave up after too many starts, it refuses one more until it is asked to forget.
    restart = f"systemctl reset-failed {unit.name}; systemctl restart {unit.name}"
    if properties.get("ActiveState") != "failed" or remedy:
        restart = f"systemctl restart {unit.name}"
    return f"{remedy or 'Mend that'}; then: {restart}"
