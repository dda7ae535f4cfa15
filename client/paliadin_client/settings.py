"""Reads the environment once, and names all that is wrong. `docs/client.md` has the table."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from paliadin_client.errors import ConfigError

_log = logging.getLogger(__name__)

_ANY = re.compile(r".+", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9-]{1,32}")
_SECONDS = re.compile(r"(?![0.]+$)[0-9]{1,5}(\.[0-9]{1,3})?")
_PORT = re.compile(
    r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
)
#: It has neither user nor query, since it is logged. httpx2 says which hosts are possible.
_URL = re.compile(
    rf"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:({_PORT.pattern}))?(/[A-Za-z0-9._~/%-]*)?"
)
_URLS = re.compile(rf"{_URL.pattern}(\s+{_URL.pattern})*")
_SWITCH = re.compile(r"[01]")
#: What an HTTP header can hold, without blanks.
_TOKEN = re.compile(r"[!-~]+")
#: Neither can begin with `-`, and so become an option of ssh.
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:_-]{0,254}")
_ACCOUNT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
#: A session is the prefix, a dash and 8 digits: at most 64 characters.
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,54}")


@dataclass(frozen=True, slots=True, kw_only=True)
class AichatSettings:
    """What the aichat backend needs.

    Attributes:
        url: base URL, without user, query or fragment; those of several hosts with blanks between.
        token: bearer token.
        persona: who is asked.
        jwt_secret: secret of the users' tokens; None sends none.
        ca_file: certificates of authorities beside the system's, in PEM.
    """

    url: str
    token: str = field(repr=False)
    persona: str
    jwt_secret: str | None = field(repr=False)
    ca_file: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacySettings:
    """What the legacy backend needs.

    Attributes:
        host: name or address of the host; None means that there is none yet.
        port: TCP port of its sshd.
        user: account on it; None is the name of our own.
        key: contents of the private key.
        known_hosts: contents of the file that names the host's key.
        prefix: of the sessions' names.
        primer: whether what was said before goes with a question, in ssh's arguments.
    """

    host: str | None
    port: int
    user: str | None
    key: str = field(repr=False)
    known_hosts: str = field(repr=False)
    prefix: str
    primer: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The selected backend's settings, and how long `run_turn` waits, in seconds."""

    backend: AichatSettings | LegacySettings
    deadline_s: float

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read `environ`: what the selected backend needs, and nothing of the other's.

        Raises:
            ConfigError: something is missing or wrong; all of it at once.
        """
        read = _Reader(environ)
        selected = read.value("PALIADIN_BACKEND", default="")
        if selected not in ("aichat", "legacy", ""):
            _log.warning("PALIADIN_BACKEND=%.40r is neither aichat nor legacy: legacy", selected)
        deadline = read.value("PALIADIN_DEADLINE_S", _SECONDS, "seconds, 0.001 to 99999", "300")
        backend = _aichat(read) if selected == "aichat" else _legacy(read)
        if read.problems:
            raise ConfigError(read.problems)
        return cls(backend=backend, deadline_s=float(deadline))


def _aichat(read: _Reader) -> AichatSettings:
    urls = read.value("AICHAT_URL", _URLS, "an http or https URL without user and query").split()
    if len({url.rstrip("/") for url in urls}) < len(urls):
        read.problems.append("AICHAT_URL names a host twice")
    return AichatSettings(
        url=" ".join(urls),
        token=read.value("AICHAT_TOKEN", _TOKEN, "printable ASCII without blanks", secret=True),
        persona=read.value("AICHAT_PERSONA", _LABEL, "1 to 32 of a-z, 0-9 and -", "paliadin"),
        jwt_secret=read.value("SUPABASE_JWT_SECRET", default="", secret=True) or None,
        ca_file=read.value("AICHAT_CA_FILE", default="") or None,
    )


def _legacy(read: _Reader) -> LegacySettings:
    host = read.value("PALIADIN_REMOTE_HOST", _HOST, "a host's name or address", "")
    # An app must start also where no host is set. Each of its calls says so then.
    needed = None if host else ""
    return LegacySettings(
        host=host or None,
        port=int(read.value("PALIADIN_REMOTE_PORT", _PORT, "a port, 1 to 65535", "22022")),
        user=read.value("PALIADIN_REMOTE_USER", _ACCOUNT, "an account's name", "") or None,
        key=read.value("PALIADIN_SSH_PRIVATE_KEY", default=needed, secret=True),
        known_hosts=read.value("PALIADIN_KNOWN_HOSTS", default=needed),
        prefix=read.value(
            "PALIADIN_SESSION_PREFIX",
            _PREFIX,
            "1 to 55 of letters, digits, _, . and -",
            "paliad-paliadin",
        ),
        primer=read.value("PALIADIN_LEGACY_PRIMER", _SWITCH, "0 or 1", "1") == "1",
    )


class _Reader:
    """Reads variables, and gathers a sentence for each that is missing or wrong."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def value(
        self,
        name: str,
        good: re.Pattern[str] = _ANY,
        wanted: str = "",
        default: str | None = None,
        *,
        secret: bool = False,
    ) -> str:
        """The variable; where it is unset or empty the default, and without one a problem."""
        value = self._environ.get(name, "").strip()
        if value and not good.fullmatch(value):
            # A URL may hold a password before its @.
            shown = "" if secret or "@" in value else f"={value!r:.60}"
            self.problems.append(f"{name}{shown} is not {wanted}")
        elif not value and default is None:
            self.problems.append(f"{name} is not set")
        elif value:
            return value
        return default or ""
