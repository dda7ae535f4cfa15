from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING

import psycopg
import pytest
from support.client_hosts import Sidecar, aichat_host, legacy_host, serving
from support.postgresql import postgresql

from paliadin_client import Inbox
from paliadin_client.store.postgresql.schema import create_sql

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from support.client_hosts import AichatHost, Host, LegacyHost
    from support.postgresql import PostgreSQL

    from paliadin_client import TurnCallback


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def psql() -> Iterator[Callable[..., str]]:
    """Runs SQL in a PostgreSQL of its own and returns its rows."""
    with postgresql() as server:
        yield server.sql


@pytest.fixture(scope="session")
def database_server() -> Iterator[PostgreSQL]:
    """A PostgreSQL whose databases `made` and, for copies, `template_store` have the tables."""
    with postgresql() as server:
        server.sql("CREATE DATABASE template_store")
        server.sql(create_sql(), "template_store")
        server.sql("CREATE DATABASE made TEMPLATE template_store")
        yield server


@pytest.fixture
def database_url(database_server: PostgreSQL) -> str:
    """The connection string of a database with a store's tables, which are empty."""
    url = database_server.url("made")
    with psycopg.connect(url, options="-c lock_timeout=10s") as connection:
        tables = ("pushes", "turns", "replies", "windows")
        connection.execute(f"TRUNCATE {', '.join(f'paliadin.{each}' for each in tables)}".encode())
    return url


@pytest.fixture
async def aichat() -> AsyncIterator[AichatHost]:
    async with aichat_host() as host:
        yield host


@pytest.fixture
async def legacy() -> AsyncIterator[LegacyHost]:
    async with legacy_host() as host:
        yield host


@pytest.fixture(params=["aichat", "legacy"])
async def host(request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    async with aichat_host() if request.param == "aichat" else legacy_host() as host:
        yield host


@pytest.fixture
def secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture
def stored() -> list[TurnCallback]:
    """What the inbox gave to the app."""
    return []


@pytest.fixture
def inbox(secret: str, stored: list[TurnCallback]) -> Inbox:
    async def store(turn: TurnCallback) -> None:
        stored.append(turn)

    return Inbox([secret], on_turn=store)


@pytest.fixture
async def sidecar(inbox: Inbox, secret: str) -> AsyncIterator[Sidecar]:
    async with serving(inbox) as url:
        sender = Sidecar(url, secret)
        async with sender.http:
            yield sender
