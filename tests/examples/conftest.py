from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support import paliad
from support.postgresql import PostgreSQL, postgresql

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    return paliad.build(tmp_path_factory.mktemp("paliad"))


@pytest.fixture(scope="session")
def database() -> Iterator[PostgreSQL]:
    with postgresql() as database:
        database.sql("""
            CREATE SCHEMA paliad;
            CREATE TABLE paliad.paliadin_turns (
                id uuid PRIMARY KEY, user_id uuid NOT NULL, response text, error_code text
            );
            CREATE TABLE sessions (token text PRIMARY KEY, user_id uuid);
            -- So that a test can see what was asked, and that it was answered.
            ALTER SYSTEM SET log_min_duration_statement = 0;
        """)
        database.sql("SELECT pg_reload_conf()")
        yield database
