"""The token, read by PyJWT, and by a real PostgreSQL with row-level security."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import uuid4

import jwt
import pytest

from paliadin_client.aichat import sign_turn_token

if TYPE_CHECKING:
    from collections.abc import Callable

SECRET = "a-secret-of-more-than-thirty-two-bytes"
NOW = datetime(2026, 11, 22, 8, 0, 0, 900_000, tzinfo=UTC)
ANNA, BEN = (str(uuid4()) for _ in range(2))


def test_claims() -> None:
    """The claims are exactly the known ones, and the turn's id; they last two minutes."""
    token = sign_turn_token(ANNA, "turn-1", SECRET, NOW)
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
    token = sign_turn_token(ANNA, "turn-1", SECRET, datetime.now(UTC) - timedelta(seconds=age))
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


@pytest.mark.slow
def test_row_level_security(psql: Callable[..., str]) -> None:
    """With user A's claims one sees A's rows only; with none, none."""
    psql(SUPABASE)
    seen = {}
    for user in (ANNA, BEN, str(uuid4())):
        # As the agent's skill does it: what verifies is set for one transaction.
        claims = _verified(sign_turn_token(user, "turn-1", SECRET, datetime.now(UTC)))
        rows = psql(QUERY, role=str(claims["role"]), claims=json.dumps(claims))
        seen[user] = rows.split("\n")[:-1]
    assert seen == {ANNA: ["anna 1", "anna 2"], BEN: ["ben 1"], user: []}
    assert psql(QUERY, role="authenticated", claims="") == ""
    assert psql(QUERY, role="postgres", claims="").count("\n") == 3
