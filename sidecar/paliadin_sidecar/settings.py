"""The environment, read once into one frozen value."""

from __future__ import annotations

import ipaddress
import os
import pwd
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from paliadin_contract.errors import BadSecret
from paliadin_contract.ids import is_label
from paliadin_contract.signature import Keys
from paliadin_sidecar.environment import BOM, Reader, unknown_sentence, unknown_variables
from paliadin_sidecar.errors import BadSettings

Engine = Literal["watchfiles", "inotify"]
_ENGINES: tuple[Engine, ...] = ("watchfiles", "inotify")
_LEVELS = ("debug", "info", "warning", "error")

_DEFAULT_WATCH = "aichat/paliadin=/tmp/aichat/paliadin:legacy/paliadin="
#: Where the legacy shim writes, unless its PALIADIN_RESPONSE_DIR says otherwise.
_DEFAULT_RESPONSES = "/tmp/paliadin"  # noqa: S108 - a place, not a file
_MIB = 1024 * 1024
#: For so long a change of an answer is sent as a revision: `outbox.database.LATE_S`.
_CHANGES_S = 600.0
#: The user id that is none: -1 in the kernel's 32 bits.
_NO_USER = 2**32 - 1


@dataclass(frozen=True)
class RootSpec:
    """One directory to watch, and what its answers are called."""

    backend: str
    persona: str
    path: Path

    @property
    def about(self) -> dict[str, str]:
        """What events and the status show of it."""
        return {"backend": self.backend, "persona": self.persona, "path": str(self.path)}


@dataclass(frozen=True)
class Settings:
    """What the environment says, checked. Durations are seconds, sizes bytes."""

    state_dir: Path
    roots: tuple[RootSpec, ...]
    owner: int  #: the user whose roots and files are taken
    host_label: str
    callback_url: str
    secrets: tuple[str, ...] = field(repr=False)
    max_bytes: int = 4 * _MIB
    max_outbox: int = 1024 * _MIB
    keep_answers: float = 72 * 3600.0  #: seconds
    keep_turns: float = 90 * 86_400.0  #: seconds
    quiet_s: float = 5.0
    rescan_s: float = 2.0
    refused_s: float = 900.0
    callback_timeout_s: float = 10.0
    callback_insecure: bool = False
    callback_ca_file: Path | None = None
    events: Engine = "watchfiles"
    log_level: str = "info"
    metrics: tuple[str, int] | None = None  #: host and port of the Prometheus endpoint
    #: Variables that look like ours and are none, each with the nearest that is one.
    unknown: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Read everything that the daemon needs.

        Raises:
            BadSettings: with all that is wrong, not just the first.
        """
        read = Reader(environ)
        settings = cls(
            state_dir=read.state_dir(),
            roots=_roots(read),
            owner=_owner(read),
            host_label=read.text("PALIADIN_HOST_LABEL", socket.gethostname()),
            callback_insecure=(insecure := read.flag("PALIADIN_CALLBACK_INSECURE")),
            callback_url=_url(read, insecure=insecure),
            secrets=_secrets(read),
            max_bytes=int(read.number("PALIADIN_MAX_BYTES", 4 * _MIB, least=1, most=64 * _MIB)),
            max_outbox=int(read.number("PALIADIN_MAX_OUTBOX", 1024 * _MIB, least=_MIB, most=2**50)),
            keep_answers=(keep_answers := read.duration("PALIADIN_KEEP_ANSWERS", "72h")),
            keep_turns=_keep_turns(read, keep_answers),
            quiet_s=read.number("PALIADIN_QUIET_S", 5.0, least=0, most=600),
            rescan_s=read.number("PALIADIN_RESCAN_S", 2.0, least=0.05, most=60),
            refused_s=read.number("PALIADIN_REFUSED_S", 900.0, least=0, most=7 * 86_400),
            callback_timeout_s=read.number("PALIADIN_CALLBACK_TIMEOUT_S", 10.0, least=0.1, most=60),
            callback_ca_file=_authority(read),
            events=_engine(read),
            log_level=read.choice("PALIADIN_LOG_LEVEL", _LEVELS, "info"),
            metrics=_address(read),
            unknown=tuple(unknown_variables(environ, read.asked)),  # when all are asked for
        )
        if read.problems:
            # One that is not set may be so since its name is misspelt.
            unknown = [unknown_sentence(*one) for one in settings.unknown]
            raise BadSettings([*read.problems, *unknown])
        return settings

    def variables(self) -> dict[str, str]:
        """The effective value of each variable, which the daemon has until it is restarted.

        They hold the secrets, and the authority's certificates in the place of their path.
        """
        try:
            authority = self.callback_ca_file.read_text() if self.callback_ca_file else ""
        except (OSError, UnicodeDecodeError):
            authority = str(self.callback_ca_file)
        others = {
            f"PALIADIN_{name.upper()}": str(value)
            for name, value in asdict(self).items()
            if name not in {"state_dir", "roots", "secrets", "unknown"}
        }
        return others | {
            "PALIADIN_CALLBACK_SECRET": " ".join(self.secrets),
            "PALIADIN_WATCH": str(self.roots),
            "PALIADIN_CALLBACK_CA_FILE": authority,
        }


# --- how each variable is read ----------------------------------------------------------


def _engine(read: Reader) -> Engine:
    name = "PALIADIN_EVENTS"
    value = read.choice(name, _ENGINES, _ENGINES[0])
    if value == "inotify" and find_spec("asyncinotify") is None:
        read.wrong(name, value, "needs the package asyncinotify, as in requirements/sidecar.txt")
    return value


def _authority(read: Reader) -> Path | None:
    name = "PALIADIN_CALLBACK_CA_FILE"
    value = read.text(name, "")
    if not value:
        return None
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as exc:  # an SSLError is one
        why = exc.strerror or type(exc).__name__
        read.wrong(name, value, f"must be a readable file of PEM certificates ({why})")
    return Path(value)


def _keep_turns(read: Reader, keep_answers: float) -> float:
    name = "PALIADIN_KEEP_TURNS"
    seconds = read.duration(name, "90d")
    value = read.text(name, "90d")
    if seconds < _CHANGES_S:
        why = "until then an answer that changes is sent as a revision of its turn, and without "
        read.wrong(name, value, f"must be 10m or longer: {why}the turn as a new one")
    elif seconds < keep_answers:
        answers = read.text("PALIADIN_KEEP_ANSWERS", "72h")
        why = "an answer goes with its turn, and could not be sent again for as long as that says"
        read.wrong(name, value, f"must not be shorter than PALIADIN_KEEP_ANSWERS={answers}: {why}")
    return seconds


def _address(read: Reader) -> tuple[str, int] | None:
    name = "PALIADIN_METRICS"
    value = read.text(name, "")
    if not value:
        return None
    try:
        url = urlsplit(f"//{value}")
        host, port = url.hostname or "", url.port or 0
        # No other names: one that is looked up can be another address tomorrow.
        if host != "localhost":
            ipaddress.ip_address(host)
    except ValueError:
        host, port = "", 0
    if not port or value.lower() not in {f"{host}:{port}", f"[{host}]:{port}"}:
        read.wrong(name, value, "must be <address>:<port>, such as 127.0.0.1:9464")
    return host, port


def _owner(read: Reader) -> int:
    value = read.text("PALIADIN_OWNER", str(os.getuid()))
    if re.fullmatch(r"[0-9]{1,10}", value, re.ASCII) and int(value) < _NO_USER:
        return int(value)
    try:
        return pwd.getpwnam(value).pw_uid
    except KeyError:
        read.wrong("PALIADIN_OWNER", value, "must be a user's name or number on this host")
        return os.getuid()


def _roots(read: Reader) -> tuple[RootSpec, ...]:
    name = "PALIADIN_WATCH"
    value = read.text(name, "") or f"{_DEFAULT_WATCH}{_responses(read)}"
    right = "must be <backend>/<persona>=<absolute path>, several joined by ':'"
    roots: list[RootSpec] = []
    for part in value.split(":"):
        labels, _, path = part.strip().partition("=")
        backend, _, persona = labels.partition("/")
        if not (is_label(backend) and is_label(persona) and _is_plain(path)):
            read.wrong(name, part, f"{right}; labels are of a-z, 0-9 and -")
            continue
        roots.append(RootSpec(backend, persona, Path(path)))
    _distinct(read, name, [f"{r.backend}/{r.persona}" for r in roots])
    _distinct(read, name, [str(r.path) for r in roots])
    return tuple(roots)


def _responses(read: Reader) -> str:
    name = "PALIADIN_RESPONSE_DIR"
    value = read.text(name, _DEFAULT_RESPONSES)
    if _is_plain(value) and ":" not in value:
        return value
    read.wrong(name, value, "must be an absolute path without ':'")
    return _DEFAULT_RESPONSES


def _distinct(read: Reader, name: str, values: list[str]) -> None:
    for twice in sorted({v for v in values if values.count(v) > 1}):
        read.wrong(name, twice, "is named twice; each root needs a label and a path of its own")


def _url(read: Reader, *, insecure: bool) -> str:
    name = "PALIADIN_CALLBACK_URL"
    value = read.text(name, "")
    right = "must be the https:// address of paliad's callback route"
    if not value:
        read.problems.append(f"{name} is not set: {right}")
        return ""
    try:
        url = urlsplit(value)
        host = url.hostname if url.port != 0 else None
        (host or "").encode("idna")  # as its lookup does: no label is empty, or too long
    except ValueError:
        host = None
    # What is no printable ASCII would fail at each attempt only (RFC 3986, section 2).
    if not host or url.scheme not in {"http", "https"} or not re.fullmatch("[!-~]+", value):
        read.wrong(name, _without_secrets(value), right)
    elif url.username is not None or set(value) & set("?#"):
        # They would end in logs here and in access logs there; an empty one would not be sent.
        read.wrong(name, _without_secrets(value), "must hold no user, password or query")
    elif url.scheme == "http" and not insecure and not is_loopback(host):
        read.wrong(
            name, value, "must be https, or http to this host, or PALIADIN_CALLBACK_INSECURE=1"
        )
    return value


def _secrets(read: Reader) -> tuple[str, ...]:
    name = "PALIADIN_CALLBACK_SECRET"
    value, source = _secret_text(read, name)
    # Editors, and whatever was joined from their files, leave byte order marks.
    value = value.replace(BOM, "").strip()
    if not value:
        if source:
            read.problems.append(
                f"{source} is not set: must be whsec_<base64>, the one that paliad has; where "
                "there is none yet, make one with "
                """echo "whsec_$(head -c 32 /dev/urandom | base64)" """.rstrip()
            )
        return ()
    try:
        Keys(value.split())
    except BadSecret as exc:
        read.problems.append(f"{source}: {exc}; must be whsec_<base64>, 24 bytes or more")
    return tuple(value.split())


def _secret_text(read: Reader, name: str) -> tuple[str, str]:
    # The text, and where it comes from; an unreadable file is a problem already said.
    if value := read.text(name, ""):
        return value, name
    path = read.text(f"{name}_FILE", "")
    source = f"{name}_FILE"
    if not path and (directory := read.text("CREDENTIALS_DIRECTORY", "")):
        path, source = f"{directory}/callback-secret", "the credential callback-secret"
        if not os.access(path, os.F_OK):
            return "", name
    if not path:
        return "", name
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        right = f"must be a text file that this user can read ({type(exc).__name__})"
        if isinstance(exc, PermissionError):
            right += f", or nothing can be signed: chown {os.geteuid()} {path}"
        read.wrong(source, path, right)
        return "", ""
    return text, f"{source} ({path})"


def _is_plain(path: str) -> bool:
    return path.startswith("/") and Path(path) == Path(os.path.normpath(path))


def is_loopback(host: str) -> bool:
    """Whether this name or address of a URL is surely of this very host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_secrets(url: str) -> str:
    # A user, a password or a query may be one, and a malformed address hides where it is.
    return "<hidden>" if set(url) & set("@?#") else url
