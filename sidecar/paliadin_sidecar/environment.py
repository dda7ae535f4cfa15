"""The variables, of the process and of a file, and how one of them is read.

All that a command needs which only looks at an outbox: what the daemon needs is in `settings`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TypeVar

from paliadin_sidecar.errors import BadSettings

T = TypeVar("T", bound=str)

#: Where the commands look for what their environment does not say.
DEFAULT_ENV_FILE = Path("/etc/paliadin/sidecar.env")
#: The byte order mark that editors leave.
BOM = "\ufeff"
_DEFAULT_STATE_DIR = "/var/lib/paliadin-sidecar"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
#: The longest duration: what is kept may be kept for a century.
_MAX_DAYS = 36_500
#: In a file: a comment, or all up to the "=" or to the end of a line that has none.
_NAME = re.compile(r"[ \t\r\n]*(?:[#;][^\r\n]*|([^\r\n][^=\r\n]*)?)(=|[\r\n]|\Z)")
#: A value is quoted parts, and at its end one without quotes, in which a quote is any character.
#: What is still open at the end of the file is closed there.
_PART = re.compile(
    r"""[ \t]+
    | '(?P<single>[^']*)'?
    | "(?P<double>(?:\\[\s\S]|[^"\\])*)\\?"?
    | (?P<plain>(?:\\[\s\S]|[^\\\r\n])+?)[ \t]*(?=[\r\n]|\\?\Z)
    | \\\Z""",
    re.VERBOSE,
)
#: Of the client, the legacy shim and the tests, which may stand in the same environment.
_OTHERS = frozenset({
    "PALIADIN_BACKEND", "PALIADIN_CALLBACK_SECRET_FILE", "PALIADIN_CRASH_AT",
    "PALIADIN_DEADLINE_S", "PALIADIN_KNOWN_HOSTS", "PALIADIN_REMOTE_CWD", "PALIADIN_REMOTE_HOST",
    "PALIADIN_REMOTE_PORT", "PALIADIN_REMOTE_USER", "PALIADIN_RESPONSE_DIR",
    "PALIADIN_SESSION_PREFIX", "PALIADIN_SSH_PRIVATE_KEY", "PALIADIN_TIMEOUT_S",
})  # fmt: skip
#: How alike a name must be that does not even begin as ours do: one letter or two.
_ALIKE = 0.85


def merged_environment(environ: Mapping[str, str], env_file: Path | None) -> dict[str, str]:
    """The environment, and from the file what the environment does not say.

    What systemd ignores in the file is here under a name that no variable has, to be reported.

    Args:
        environ: the process's environment.
        env_file: a file as systemd reads one for a unit; None for the default one, which may be
            missing.

    Raises:
        BadSettings: a file that was named cannot be read.
        PermissionError: the default one is there and may not be read.
    """
    path = env_file or DEFAULT_ENV_FILE
    try:
        with path.open(encoding="utf-8", newline="") as file:
            said = assignments(file.read())
    except FileNotFoundError:
        if env_file is None:
            return dict(environ)
        raise BadSettings([f"--env-file {env_file} does not exist"]) from None
    except PermissionError:
        raise
    except (OSError, UnicodeDecodeError) as exc:
        raise BadSettings([f"{path} cannot be read: {type(exc).__name__}"]) from None
    if any(name.startswith(BOM) for name, _ in said):
        mark = "a byte order mark, which makes systemd ignore its first variable"
        raise BadSettings([f"{path} begins with {mark}: sed -i '1s/^\\xef\\xbb\\xbf//' {path}"])
    return dict(said) | dict(environ)


def assignments(text: str) -> list[tuple[str, str]]:
    """A file's names and values, in their order: of a name that comes twice, the last counts.

    It is read as systemd reads a unit's EnvironmentFile= (systemd.exec(5)): the daemon has its
    variables from systemd, and the commands read the same file themselves, so a value must not be
    one thing here and another there. So a comment is a line of its own, and what stands behind a
    value is a part of it.

    What systemd ignores is here too, so that a program can say so, under a name that no variable
    can have: `export A`, or of a line without `=` its first word, with that said behind it.

    Args:
        text: the file's, its line ends as they are.
    """
    found = []
    at = 0
    while at < len(text) and (name := _NAME.match(text, at)):
        at = name.end()
        if not (name[1] or "").strip("\ufeff \t") or name[1].startswith("\ufeff#"):
            continue  # a comment, also behind an editor's byte order mark, or nothing
        if name[2] != "=":
            # Not all of the line: it may hold a secret.
            found.append((f"{name[1].split()[0]} without =", ""))
            continue
        value = ""
        while part := _PART.match(text, at):
            at = part.end()
            value += _unescaped(part)
        found.append((name[1].strip(" \t"), value))
    return found


def _unescaped(part: re.Match[str]) -> str:
    if part["single"] is not None:
        return part["single"]
    if part["double"] is not None:
        # As in a shell: before any other character the backslash stays.
        return re.sub(r'\\(?:\n|(["\\`$]))', lambda pair: pair[1] or "", part["double"])
    return re.sub(r"\\(?:[\r\n]|([\s\S]))", lambda pair: pair[1] or "", part["plain"] or "")


def find_state_dir(environ: Mapping[str, str]) -> Path:
    """Where the outbox is.

    Raises:
        BadSettings: the value is no absolute path.
    """
    reader = Reader(environ)
    found = reader.state_dir()
    if reader.problems:
        raise BadSettings(reader.problems)
    return found


class Reader:
    """Reads variables, and collects the problems, so that an operator sees all of them at once.

    Args:
        environ: where they are.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.asked: set[str] = set()  #: the names of the variables that were read
        #: One sentence each: the variable, its value unless it is a secret's, what would be right.
        self.problems: list[str] = []

    def wrong(self, name: str, value: str, right: str) -> None:
        """Add a problem; a secret may stand where it does not belong, and is not shown."""
        shown = "<hidden>" if "whsec_" in value else repr(value)
        self.problems.append(f"{name}={shown}: {right}")

    def text(self, name: str, default: str = "") -> str:
        """The value, without blanks around it; the default where it is empty."""
        self.asked.add(name)
        value = self._environ.get(name, "").strip()
        try:
            good = b"\0" not in value.encode()
        except UnicodeEncodeError:  # how Python carries a byte that is no UTF-8
            good = False
        if not good:
            # No path, no name and no body can hold it. The value may be a secret.
            self.problems.append(f"{name} must be UTF-8 without NUL")
            return default
        return value or default

    def flag(self, name: str) -> bool:
        """1 or 0, which is the default."""
        value = self.text(name, "0")
        if value not in {"0", "1"}:
            self.wrong(name, value, "must be 1 or 0")
        return value == "1"

    def choice(self, name: str, known: tuple[T, ...], default: T) -> T:
        """One of several words, in whatever case."""
        value = self.text(name, default).lower()
        for one in known:
            if one == value:
                return one
        self.wrong(name, value, f"must be one of {', '.join(known)}")
        return default

    def number(self, name: str, default: float, *, least: float, most: float) -> float:
        """A number between two others."""
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not least <= number <= most:  # also when it is no number
            self.wrong(name, value, f"must be a number from {least:.12g} to {most:.12g}")
            return default
        return number

    def duration(self, name: str, default: str) -> float:
        """Seconds, of a text such as `72h`; 0 may stand alone.

        Args:
            name: the variable's.
            default: such a text.
        """
        value = self.text(name, default)
        found = seconds_of(value)
        if found is None or found > _MAX_DAYS * _UNITS_S["d"]:
            durations = f"90s, 10m, 72h or 90d, at most {_MAX_DAYS}d"
            self.wrong(name, value, f"must be 0 or a duration such as {durations}")
            return seconds_of(default) or 0.0
        return found

    def state_dir(self) -> Path:
        """The daemon's state directory."""
        name = "PALIADIN_STATE_DIR"
        # systemd lists several, should a unit ask for them: the first is ours.
        of_systemd = self.text("STATE_DIRECTORY", _DEFAULT_STATE_DIR).split(":")[0]
        value = self.text(name, of_systemd)
        path = Path(value)
        if not path.is_absolute():
            self.wrong(name, value, "must be an absolute path")
        return path


def seconds_of(text: str) -> float | None:
    """What a duration such as `90s`, `10m`, `72h` or `7d`, or a bare `0`, says; None for none."""
    if text == "0":
        return 0.0
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text, re.ASCII)
    return float(match[1]) * _UNITS_S[match[2]] if match else None


def unknown_variables(names: Iterable[str], known: Iterable[str]) -> list[tuple[str, str]]:
    """Each name that is misspelt, and the known one that is nearest to it.

    Args:
        names: all variables of an environment.
        known: those that are read.
    """
    known = {*known} | _OTHERS
    ours = sorted(name for name in known if name.startswith("PALIADIN_"))
    found = []
    for name in sorted({*names} - known):
        shape = name.upper().replace("-", "_").removeprefix("EXPORT ")
        if shape.startswith("_PALIADIN"):
            continue  # of the shell's completion
        begins = shape.startswith("PALIADIN_")
        nearest = get_close_matches(shape, ours, 1, 0.0 if begins else _ALIKE)
        if nearest:
            found.append((name, nearest[0]))
    return found


def unknown_sentence(name: str, nearest: str) -> str:
    """What an operator reads of one."""
    return f"{name} is no variable of the sidecar's and is ignored: is it {nearest}?"
