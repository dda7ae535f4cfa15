"""The token, read by PyJWT, and by a real PostgreSQL with row-level security."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import pytest

from paliadin_client.mint import mint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECRET = "a-secret-of-more-than-thirty-two-bytes"
NOW = datetime(2026, 11, 22, 8, 0, 0, 900_000, tzinfo=UTC)
ANNA, BEN = (str(uuid4()) for _ in range(2))


def test_claims() -> None:
    """The claims are exactly the known ones, and the turn's id; they last two minutes."""
    token = mint(ANNA, "turn-1", SECRET, NOW)
    claims = jwt.decode(token, SECRET, algorithms=["HS256"], options={"verify_signature": False})
    issued = int(NOW.timestamp())
    assert claims == {
        "sub": ANNA,
        "role": "authenticated",
        "aud": "authenticated",
        "iss": "paliad/paliadin",
        "iat": issued,
        "exp": issued + 120,
        "jti": "turn-1",
    }
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}


@pytest.mark.parametrize(
    ("secret", "age", "error"),
    [
        (SECRET, 119, None),
        (SECRET, 121, jwt.ExpiredSignatureError),
        (SECRET + "x", 0, jwt.InvalidSignatureError),
    ],
)
def test_verified(secret: str, age: int, error: type[Exception] | None) -> None:
    """A verifier takes it for two minutes, and only with the secret."""
    token = mint(ANNA, "turn-1", SECRET, datetime.now(UTC) - timedelta(seconds=age))
    if error is None:
        assert _verified(token, secret)["sub"] == ANNA
    else:
        with pytest.raises(error):
            _verified(token, secret)


def _verified(token: str, secret: str = SECRET) -> dict[str, object]:
    return jwt.decode(
        token, secret, algorithms=["HS256"], audience="authenticated", issuer="paliad/paliadin"
    )


SUPABASE = f"""
CREATE ROLE authenticated NOLOGIN;
CREATE SCHEMA auth;
CREATE FUNCTION auth.uid() RETURNS uuid LANGUAGE sql STABLE AS $$
    SELECT (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')::uuid
$$;
CREATE TABLE deadlines (owner uuid NOT NULL, what text NOT NULL);
INSERT INTO deadlines VALUES ('{ANNA}', 'anna 1'), ('{BEN}', 'ben 1'), ('{ANNA}', 'anna 2');
ALTER TABLE deadlines ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON deadlines FOR SELECT TO authenticated USING (owner = auth.uid());
GRANT USAGE ON SCHEMA auth TO authenticated;
GRANT SELECT ON deadlines TO authenticated;
"""
QUERY = """
BEGIN;
SELECT set_config('role', :'role', true) \\g /dev/null
SELECT set_config('request.jwt.claims', :'claims', true) \\g /dev/null
SELECT what FROM deadlines ORDER BY what;
COMMIT;
"""


@pytest.fixture
def psql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A PostgreSQL of our own, on a socket of its own; runs SQL and returns its rows."""
    # Debian keeps the server's programs off the PATH.
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    initdb, pg_ctl, client = (
        shutil.which(each, path=os.pathsep.join(places)) for each in ("initdb", "pg_ctl", "psql")
    )
    if not (initdb and pg_ctl and client):
        # In CI there must be one, or nobody would see that this is never run.
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no PostgreSQL here")
    home = tmp_path_factory.mktemp("pg")
    # It refuses to run as root, which tests in a container are.
    account = pwd.getpwnam("nobody" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name)
    for directory in (home, *home.parents[:2]):
        directory.chmod(0o711)
    os.chown(home, account.pw_uid, account.pw_gid)

    def run(*argv: str, sql: str | None = None) -> str:
        return subprocess.run(
            argv,
            input=sql,
            text=True,
            check=True,
            cwd=home,
            user=account.pw_uid,
            group=account.pw_gid,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ).stdout

    data = str(home / "data")
    run(initdb, "-D", data, "-U", "postgres", "--auth=trust", "--no-sync", "--locale=C")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    run(pg_ctl, "-D", data, "-o", options, "-l", str(home / "log"), "-w", "start")

    def sql(text: str, **variables: str) -> str:
        assigned = [f"--set={name}={value}" for name, value in variables.items()]
        arguments = ["-h", str(home), "-U", "postgres", "-qAtX", "--set=ON_ERROR_STOP=1"]
        return run(client, *arguments, *assigned, sql=text)

    try:
        yield sql
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "-w", "stop")


@pytest.mark.slow
def test_row_level_security(psql: Callable[..., str]) -> None:
    """With user A's claims one sees A's rows only; with none, none."""
    psql(SUPABASE)
    seen = {}
    for user in (ANNA, BEN, str(uuid4())):
        # As the agent's skill does it: what verifies is set for one transaction.
        claims = _verified(mint(user, "turn-1", SECRET, datetime.now(UTC)))
        rows = psql(QUERY, role=str(claims["role"]), claims=json.dumps(claims))
        seen[user] = rows.split("\n")[:-1]
    assert seen == {ANNA: ["anna 1", "anna 2"], BEN: ["ben 1"], user: []}
    assert psql(QUERY, role="authenticated", claims="") == ""
    assert psql(QUERY, role="postgres", claims="").count("\n") == 3
