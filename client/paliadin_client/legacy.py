"""The legacy backend: asks the shim that is behind the host's `authorized_keys`, over ssh."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import ClassVar

from paliadin_client.backend import Reply, TurnRequest, User, parse_uuid, userid8
from paliadin_client.errors import BadRequest, MessageTooLong, NotConfigured, ShimError
from paliadin_client.settings import LegacySettings
from paliadin_client.ssh import Ssh, open_ssh
from paliadin_client.text import one_line
from paliadin_contract.trailer import TAIL_BYTES, is_whole, split

#: The kernel's limit for one string of argv or environ, less its final NUL.
_ARGUMENT_BYTES = 131_071
_MAX_DETAIL_BYTES = 4096
_HEALTH_S = 20.0
_RESET_S = 30.0


@asynccontextmanager
async def open_legacy(settings: LegacySettings) -> AsyncIterator[Legacy]:
    """The shim, until the context ends; ssh's key lies in a private directory meanwhile.

    Raises:
        ConfigError: there is no room for the key, or key or known hosts will not do.
    """
    async with open_ssh(settings) if settings.host else nullcontext() as ssh:
        yield Legacy(ssh, settings.prefix, primer=settings.primer)


class Legacy:
    """The shim's verbs as a `Backend`."""

    name: ClassVar[str] = "legacy"
    reply_has_metadata: ClassVar[bool] = False
    health_per_pane: ClassVar[bool] = True

    def __init__(self, ssh: Ssh | None, prefix: str, *, primer: bool = True) -> None:
        self._ssh = ssh
        self._prefix = prefix
        self._primer = primer

    def pane(self, user: User) -> str:
        """The session: `<prefix>-<userid8>`."""
        self._configured()
        return f"{self._prefix}-{userid8(user)}"

    def prepare(self, request: TurnRequest, primer: str) -> Callable[[], Awaitable[Reply]]:
        """The submit; refused are a turn id that is no UUID and a message that does not fit."""
        session = self.pane(request.user)
        # The shim names the file by the id as it stands here, and that name comes back in the push.
        if parse_uuid(request.turn_id) is None:
            raise BadRequest("the turn id is no UUID")
        # The shim has one argument for both, which the process list shows here.
        line = f"{primer if self._primer else ''} {one_line(request.message)}".lstrip()
        message = base64.b64encode(line.encode()).decode()
        verb = ("run-turn", session, request.turn_id)
        # sshd hands the whole command to the shim in one string of its environment.
        limit = _ARGUMENT_BYTES - len(f"SSH_ORIGINAL_COMMAND={' '.join(verb)} ")
        if len(message) > limit:
            raise MessageTooLong(len(message), limit)
        return partial(self._turn, *verb, message)

    async def health(self, user: User | None, /) -> None:
        """`health <session>`; without a user the session is the bare prefix."""
        session = self.pane(user) if user else self._prefix
        printed = (await self._configured().run("health", session, limit_s=_HEALTH_S)).strip()
        if printed == b"ok":
            return
        detail = printed[-_MAX_DETAIL_BYTES:].decode(errors="replace")
        if b"ok" in printed.splitlines():
            raise ShimError(
                "the host prints more than the shim's ok: the profile of its account (.bashrc, "
                ".zshenv) prints on stdout, and would into answers as well",
                detail=detail,
            )
        raise ShimError("the shim's health check did not print ok", detail=detail, retryable=True)

    async def reset(self, user: User) -> None:
        """`reset <session>`."""
        await self._configured().run("reset", self.pane(user), limit_s=_RESET_S)

    async def _turn(self, *command: str) -> Reply:
        answer = await self._configured().run(*command)
        text, trailer = split(answer.decode(errors="replace"))
        return Reply(text=text, trailer=trailer, whole=is_whole(answer[-TAIL_BYTES:]))

    def _configured(self) -> Ssh:
        if self._ssh is None:
            raise NotConfigured("PALIADIN_REMOTE_HOST is not set")
        return self._ssh
