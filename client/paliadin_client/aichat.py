"""The aichat backend: asks over HTTP.

The names in its requests and answers are known in part. The rest is guessed in this module: the
names `message` and `jwt` in `_turn`, the primer's form (the text that the agent reads),
`_TEXT` in an answer, and where an error's fields stand in `_error`.
"""

from __future__ import annotations

import logging
import re
import ssl
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import ClassVar

import httpx2
import jwt
import msgspec

from paliadin_client import errors
from paliadin_client.backend import (
    MAX_ANSWER_BYTES,
    Reply,
    TurnRequest,
    User,
    answers_within,
    userid8,
)
from paliadin_client.http_cause import connection_error, system_message
from paliadin_client.settings import AichatSettings
from paliadin_client.text import one_line
from paliadin_contract.ids import is_turn_id
from paliadin_contract.trailer import TAIL_BYTES, is_whole, split

_log = logging.getLogger(__name__)

_TEXT = ("response", "answer", "text")
_TRAILER = ("used_tools", "rows_seen", "classifier_tag")
#: The parts of an address that may be secret: its query, its fragment, and its user.
_SECRETS = re.compile(r"[?#].*|(?<=//)[^/?#]*@")
#: The caller's deadline bounds a turn. These bound what should be quick.
_CONNECT_S = 10.0
_HEALTH_S = 10.0
_RESET_S = 30.0
_TOKEN_S = 120
#: A key of HS256 has at least as many bytes as its hash (RFC 7518, 3.2).
_MIN_SECRET_BYTES = 32


@asynccontextmanager
async def open_aichats(settings: AichatSettings) -> AsyncIterator[Mapping[str, Aichat]]:
    """The way to each host that the settings name, by its URL, until the context ends.

    That the hosts get no tokens is logged, once.
    """
    _check_secret(settings.jwt_secret)
    tls = _tls_context(settings.ca_file)
    async with AsyncExitStack() as stack:
        backends = {}
        for url in settings.url.split():
            http = await stack.enter_async_context(_http(url, settings.token, tls))
            backends[url] = Aichat(http, settings.persona, settings.jwt_secret)
        yield backends


class Aichat:
    """aichat's HTTP API as a `Backend`."""

    name: ClassVar[str] = "aichat"
    reply_has_metadata: ClassVar[bool] = True
    health_per_pane: ClassVar[bool] = False

    def __init__(self, http: httpx2.AsyncClient, persona: str, jwt_secret: str | None) -> None:
        self._http = http
        self._persona = persona
        self._jwt_secret = jwt_secret

    def pane(self, user: User) -> str:
        """The `username` that keys the user's window: the e-mail's local part, else by the id."""
        local = one_line((user.email or "").partition("@")[0])
        return local or f"user-{userid8(user)}"

    def prepare(self, request: TurnRequest, primer: str) -> Callable[[], Awaitable[Reply]]:
        """The submit; nothing is refused here."""
        return partial(self._turn, request, primer)

    async def health(self, _user: User | None, /) -> None:
        """`GET /chat/health`: one check for all users."""
        with answers_within(_HEALTH_S, "aichat"):
            await self._call("GET", "chat/health", None)

    async def reset(self, user: User) -> None:
        """`POST /chat/reset`."""
        with answers_within(_RESET_S, "aichat"):
            await self._call("POST", "chat/reset", self._who(user))

    async def _turn(self, request: TurnRequest, primer: str) -> Reply:
        token = self._jwt_secret and sign_turn_token(
            request.user.user_id, request.turn_id, self._jwt_secret, datetime.now(UTC)
        )
        fields = {
            **self._who(request.user),
            "turn_id": request.turn_id,
            "conversation_id": request.conversation_id,
            "primer": primer,
            "message": request.message,
            "jwt": token,
        }
        payload = {name: one_line(value) for name, value in fields.items() if value}
        return _reply(await self._call("POST", "chat/turn", payload))

    def _who(self, user: User) -> dict[str, str]:
        return {"persona": self._persona, "username": self.pane(user), "user_id": user.user_id}

    async def _call(self, method: str, path: str, payload: Mapping[str, str] | None) -> bytes:
        try:
            async with self._http.stream(method, path, json=payload) as response:
                body = await _read(response)
        # Not chained: httpx2's errors hold the request, and may quote the answer.
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as exc:
            raise connection_error(exc) from None
        except httpx2.HTTPError as exc:
            raise errors.ConnectionLost(
                f"the connection to aichat was lost ({type(exc).__name__})",
                detail=system_message(exc),
            ) from None
        if response.is_redirect:
            raise errors.ShimError(
                f"HTTP {response.status_code}: a redirect, which is not followed; AICHAT_URL must "
                "name the place that it leads to",
                detail=f"Location: {_SECRETS.sub('', response.headers.get('location', ''))}",
            )
        if not response.is_success:
            raise _error(response.status_code, body)
        return body


def sign_turn_token(user_id: str, turn_id: str, secret: str, now: datetime) -> str:
    """A token for one turn, of the shape that Supabase's row-level security reads.

    Args:
        user_id: becomes `sub`.
        turn_id: becomes `jti`: the id under which the caller waits, so that a late answer finds
            it also where the backend chose an id of its own.
        secret: the project's `SUPABASE_JWT_SECRET`.
        now: moment of issue, with a time zone.
    """
    issued = int(now.timestamp())
    claims = {
        "sub": user_id,
        "role": "authenticated",
        "aud": "authenticated",
        "iss": "paliad/paliadin",
        "iat": issued,
        "exp": issued + _TOKEN_S,
        "jti": turn_id,
    }
    with warnings.catch_warnings():
        # `open_aichats` says it once, in the log, where somebody can do something about it.
        warnings.simplefilter("ignore", jwt.InsecureKeyLengthWarning)
        return jwt.encode(claims, secret, algorithm="HS256")


def _check_secret(jwt_secret: str | None) -> None:
    if jwt_secret is None:
        _log.warning(
            "token.off: SUPABASE_JWT_SECRET is not set, so turns carry no token: the agent's "
            "queries run as nobody, and a late answer is matched by the backend's turn id alone"
        )
        return
    try:
        sign_turn_token("nobody", "none", jwt_secret, datetime.now(UTC))
    except jwt.InvalidKeyError:
        raise errors.ConfigError(
            ["SUPABASE_JWT_SECRET is a public key or a certificate, which signs no HS256"]
        ) from None
    if (length := len(jwt_secret.encode())) < _MIN_SECRET_BYTES:
        _log.warning(
            "token.weak: SUPABASE_JWT_SECRET has %s bytes, and HS256 wants %s or more: whoever "
            "sees a token can try keys until one fits, and then be any user",
            *(length, _MIN_SECRET_BYTES),
        )


def _http(url: str, token: str, tls: ssl.SSLContext) -> httpx2.AsyncClient:
    try:
        base_url = httpx2.URL(url)
    except httpx2.InvalidURL:
        raise errors.ConfigError([f"AICHAT_URL={url!r} has no possible host"]) from None
    return httpx2.AsyncClient(
        base_url=base_url,
        verify=tls,
        # A small body could become a huge one before it is counted, if it were compressed.
        headers={"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"},
        timeout=httpx2.Timeout(None, connect=_CONNECT_S),
        # No connection is kept: a turn takes seconds and a connection milliseconds. So a failure to
        # send never means that an idle connection had been closed meanwhile.
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        trust_env=False,
    )


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    # The system's authorities. OpenSSL by itself would go where SSL_CERT_FILE and SSL_CERT_DIR say.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    system = ssl.get_default_verify_paths()
    for cafile, capath in ((system.openssl_cafile, None), (None, system.openssl_capath)):
        with suppress(OSError):  # it is not there
            context.load_verify_locations(cafile, capath)
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as exc:  # an SSLError is one
            why = exc.strerror or type(exc).__name__
            raise errors.ConfigError(
                [f"AICHAT_CA_FILE={ca_file!r:.200} is no readable file of PEM certificates ({why})"]
            ) from None
    return context


async def _read(response: httpx2.Response) -> bytes:
    # A compressed body is not decoded, since a few of its bytes may become gigabytes.
    coding = response.headers.get("content-encoding", "identity")
    if coding.lower() != "identity":
        if not response.is_success:
            return b""
        raise errors.ConnectionLost(
            "the answer is compressed, which was not asked for: a proxy before aichat must leave "
            "it as it is",
            detail=f"Content-Encoding: {coding}",
            retryable=False,
        )
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_ANSWER_BYTES:
            raise errors.ShimError(f"aichat answered more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def _reply(body: bytes) -> Reply:
    fields = _object(body)
    # A response without a text has ended the turn all the same, and a push may bring the text.
    text = next((found for name in _TEXT if isinstance(found := fields.get(name), str)), "")
    shown, trailer = split(text)
    whole = is_whole(text.encode()[-TAIL_BYTES:])
    named = {name: fields[name] for name in _TRAILER if fields.get(name)}
    if text and trailer is None and named:
        # The backend cut the trailer off, and says what stood in it.
        trailer = split(f"[paliadin-meta]\n{msgspec.json.encode(named).decode()}")[1]
        whole = True
    duration = fields.get("duration_ms")
    return Reply(
        text=shown,
        trailer=trailer,
        whole=whole,
        turn_id=_text(fields, "turn_id", is_turn_id),
        conversation_id=_text(fields, "conversation_id", bool),
        pane_spawned=fields.get("pane_spawned") is True,
        duration_ms=duration if isinstance(duration, int | float) else None,
    )


def _error(status: int, body: bytes) -> errors.PaliadinError:
    fields = _object(body)
    inner = fields.get("error")
    said = inner if isinstance(inner, dict) else fields
    return errors.error_from_http(status, *map(said.get, ("code", "retryable", "message")))


def _object(body: bytes) -> dict[str, object]:
    try:
        return msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}


def _text(fields: Mapping[str, object], name: str, good: Callable[[str], bool]) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) and good(value) else None
