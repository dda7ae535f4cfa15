"""Reads ssh's own log: how far ssh came, and why it ended.

Only ssh writes this log (`-E`, and LogVerbose in `ssh_config`); the host's banner and the shim's
messages go to stderr. The host has a say in a few lines (`Received disconnect from …`), and can put
line breaks into them. So the lines are read in their order, and the first that decides is the last
that is looked at: once the host has let us in, nothing makes it look as if nothing had been sent.
"""

from __future__ import annotations

import enum
import re
from collections import deque


class Stage(enum.Enum):
    """How far ssh came."""

    UNKNOWN = "unknown"  #: the log does not say
    CONNECTING = "connecting"  #: to the handshake, or less far: nothing was sent
    DROPPED = "dropped"  #: the host ended the handshake and gave no reason: nothing was sent
    REFUSED = "refused"  #: the host's key is not the known one, or it refused ours
    AUTHENTICATED = "authenticated"  #: we were let in, and what follows may have reached the shim


_FORCED = re.compile(r"(?P<debug>debug[123]: )?[\w.-]+:\w+\(\):\d+ \([^)]*\): ")
#: How a line that decides begins.
_DECIDING = (
    (re.compile(r"Authenticated to "), Stage.AUTHENTICATED),
    (re.compile(r"\S+@\S+: Permission denied \(.*\)\.$"), Stage.REFUSED),
    (re.compile(r"Host key verification failed\.$"), Stage.REFUSED),
    # 14: no more ways to authenticate. 12: too many connections.
    (re.compile(r"Received disconnect from \S+ port \d+:(14:|2: Too many auth)"), Stage.REFUSED),
    (re.compile(r"Received disconnect from \S+ port \d+:12:"), Stage.DROPPED),
    (re.compile(r"Received disconnect from "), Stage.CONNECTING),
    (re.compile(r"(kex|ssh)_exchange_identification: (\w+: )?Connection "), Stage.DROPPED),
    (re.compile(r"Connection (closed|reset) by |.*during banner exchange"), Stage.DROPPED),
    (re.compile(r"(kex|ssh)_exchange_identification: |banner exchange: "), Stage.CONNECTING),
    (re.compile(r"ssh: |Unable to negotiate with "), Stage.CONNECTING),
)
_MAX_LINE_BYTES = 4096


class SshLog:
    """Reads the log while it is written.

    Attributes:
        stage: how far ssh has come.
    """

    def __init__(self) -> None:
        self.stage = Stage.UNKNOWN
        self._decided = False
        self._begun = b""
        # The last line that ssh writes is the cause, and the line before is often its reason.
        self._said: deque[str] = deque(maxlen=2)

    @property
    def cause(self) -> str:
        """What ssh said last."""
        return "\n".join(self._said)

    def feed(self, written: bytes) -> None:
        """Take what was written since."""
        *lines, begun = (self._begun + written).split(b"\n")
        self._begun = begun[:_MAX_LINE_BYTES]
        for line in lines:
            self._read(line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip("\r"))

    def _read(self, line: str) -> None:
        forced = _FORCED.match(line)
        text = line[forced.end() :] if forced else line
        decided = next((stage for begin, stage in _DECIDING if begin.match(text)), None)
        if not self._decided and decided:
            self._decided, self.stage = True, decided
        elif forced and self.stage is Stage.UNKNOWN:
            self.stage = Stage.CONNECTING
        if not (forced and forced["debug"]) and decided is not Stage.AUTHENTICATED:
            self._said.append(text)
