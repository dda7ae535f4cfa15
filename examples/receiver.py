"""A receiver of turn callbacks: verify, store, then answer. Standard library only.

    PALIADIN_CALLBACK_SECRET=whsec_… python3 receiver.py 127.0.0.1:8080 turns.sqlite

The rules are those of docs/protocol.md. It speaks plain HTTP: put what ends TLS in front of
it, or take the same steps inside the web framework of your app.
"""

from __future__ import annotations

import argparse
import base64
import hmac
import json
import os
import re
import sqlite3
import sys
import time
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BODY = 32 * 1024 * 1024
TOLERANCE_S = 300
MIN_KEY_BYTES = 24
#: Shorter than the 10 s that the sender gives an attempt, so that it gets a 503 and no timeout.
STORE_TIMEOUT_S = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS callbacks (webhook_id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS turns (
    turn TEXT PRIMARY KEY,   -- the id under which the app asked: the submitted one, else the file's
    backend TEXT, persona TEXT, turn_id TEXT,  -- together, the file that it is of
    submitted_turn_id TEXT,
    revision INTEGER,
    response TEXT,           -- the answer, or null where the turn failed
    reason TEXT              -- why it failed, or null
);
"""
# An answer outranks a failure. An answer is replaced only by its own file, so that a file which
# names another's turn cannot rewrite it. Of one file the higher revision counts. There is no user
# here: an app has its own record of who asked.
STORE_TURN = """
INSERT INTO turns VALUES
    (coalesce(:submitted_turn_id, :turn_id),
     :backend, :persona, :turn_id, :submitted_turn_id, :revision, :response, :reason)
ON CONFLICT DO UPDATE SET
    backend = excluded.backend, persona = excluded.persona, turn_id = excluded.turn_id,
    submitted_turn_id = excluded.submitted_turn_id, revision = excluded.revision,
    response = excluded.response, reason = excluded.reason
WHERE CASE
    WHEN (excluded.response IS NULL) <> (turns.response IS NULL) THEN turns.response IS NULL
    WHEN (excluded.backend, excluded.persona, excluded.turn_id)
        <> (turns.backend, turns.persona, turns.turn_id) THEN excluded.response IS NULL
    ELSE excluded.revision >= turns.revision
END
"""

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
LABEL = re.compile(r"[a-z0-9-]{1,32}")
TEXT = re.compile(r"[^\ud800-\udfff]*")  # JSON can spell half a character; no database stores it


class Receiver(BaseHTTPRequestHandler):
    """One connection of the sender's."""

    keys: ClassVar[list[bytes]]
    database: ClassVar[str]
    protocol_version = "HTTP/1.1"  # keep-alive: a backlog comes over few connections
    timeout = 30  # s without a byte, then the connection is closed

    def do_POST(self) -> None:
        """Take one callback."""
        length = self.headers.get("content-length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length):
            self.answer(400, "no length", close=True)
            return
        if int(length) > MAX_BODY:
            self.answer(413, "too large", close=True)
            self.discard(int(length))
            return
        body = self.rfile.read(int(length))
        webhook_id = self.headers.get("webhook-id", "")
        if why := self.refusal(webhook_id, body):
            self.answer(401, why)
            return
        try:
            kind, turn = read(body)
        except (ValueError, KeyError, TypeError, RecursionError):
            self.answer(400, f"{webhook_id} malformed")
            return
        try:
            if turn is not None:
                done = store(self.database, webhook_id, turn)
            else:
                # A ping or a type of a later version leaves nothing to keep. A ping asks whether a
                # turn would be taken, for which it is not enough that this process runs.
                done = repr(kind[:40])
                if kind == "ping":
                    try_store(self.database)
        except sqlite3.Error as error:
            self.answer(503, f"{webhook_id} not stored: {error}")  # and the sender tries again
            return
        self.answer(204, f"{webhook_id} {done}")

    def refusal(self, webhook_id: str, body: bytes) -> str:
        """Why the sender did not make these very bytes, and lately; empty where it did."""
        timestamp = self.headers.get("webhook-timestamp", "")
        if not webhook_id or not re.fullmatch(r"[0-9]{1,11}", timestamp):
            return "bad signature: no id or no stamp"
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        offered = self.headers.get("webhook-signature", "").encode().split(b" ")
        # While a secret is replaced there are several keys and signatures. One pair is enough.
        if not any(
            hmac.compare_digest(b"v1," + base64.b64encode(hmac.digest(key, signed, "sha256")), one)
            for key in self.keys
            for one in offered
        ):
            return "bad signature: of another secret, or changed on the way"
        off_s = int(timestamp) - round(time.time())
        if abs(off_s) > TOLERANCE_S:
            return f"bad signature: its stamp is {off_s:+d} s from this clock"
        return ""

    def answer(self, status: int, note: str, *, close: bool = False) -> None:
        """Send the status alone, and print what happened, which never holds an answer."""
        self.send_response_only(status)
        self.send_header("Date", self.date_time_string())  # a sender sees whether the clocks agree
        if status != 204:  # noqa: PLR2004  the one status here that never has a body
            self.send_header("Content-Length", "0")
        if close:
            self.send_header("Connection", "close")
        self.end_headers()
        # One write, so that the lines of several threads do not mix.
        print(f"{status} {note}\n", end="", flush=True)

    def discard(self, left: int) -> None:
        """Read what is still being sent: a connection closed before that loses the answer."""
        while left > 0 and (part := self.rfile.read1(65536)):
            left -= len(part)


def read(body: bytes) -> tuple[str, dict[str, str | int | None] | None]:
    """The callback's type, and the turn's row where it is about a turn.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is not of its type's shape.
    """
    callback = json.loads(body)
    kind = matched(TEXT, callback["type"])
    if kind not in ("turn.completed", "turn.failed"):
        return kind, None
    data = callback["data"]
    if type(data["revision"]) is not int or not 0 < data["revision"] < 2**63:
        raise ValueError("revision")
    hint = data["submitted_turn_id"]
    answered = kind == "turn.completed"
    return kind, {
        "backend": matched(LABEL, data["backend"]),
        "persona": matched(LABEL, data["persona"]),
        "turn_id": matched(ID, data["turn_id"]),
        "submitted_turn_id": None if hint is None else matched(ID, hint),
        "revision": data["revision"],
        "response": matched(TEXT, data["response"]) if answered else None,
        "reason": None if answered else matched(TEXT, data["reason"]),
    }


def matched(pattern: re.Pattern[str], text: str) -> str:
    """The text, where it is one and all of it matches."""
    if not pattern.fullmatch(text):
        raise ValueError(pattern.pattern)
    return text


def store(database: str, webhook_id: str, turn: dict[str, str | int | None]) -> str:
    """Keep the turn. When this returns, not even a power cut loses it.

    Raises:
        sqlite3.Error: it could not be stored.
    """
    # The id and the turn are one transaction: a crash between two would lose the turn, or store it
    # twice.
    with opened(database) as db, db:
        db.execute("BEGIN IMMEDIATE")
        new = db.execute("INSERT OR IGNORE INTO callbacks VALUES (?)", (webhook_id,))
        if not new.rowcount:
            return "duplicate"
        return "stored" if db.execute(STORE_TURN, turn).rowcount else "outranked"


def try_store(database: str) -> None:
    """See whether a turn would be kept, without keeping one.

    Raises:
        sqlite3.Error: it would not.
    """
    with opened(database) as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT OR IGNORE INTO callbacks VALUES ('ping')")
        db.execute("ROLLBACK")


@contextmanager
def opened(database: str) -> Iterator[sqlite3.Connection]:
    """The database, with its tables."""
    with closing(sqlite3.connect(database, timeout=STORE_TIMEOUT_S, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = EXTRA")  # FULL may forget the last commit in a power cut
        db.executescript(SCHEMA)
        yield db


def keys(secrets: str) -> list[bytes]:
    """The keys of one or more `whsec_<base64>`, separated by spaces."""
    found = []
    for secret in secrets.split():
        encoded = secret.removeprefix("whsec_")
        padding = "=" * (-len(encoded) % 4)
        found.append(base64.b64decode(encoded + padding, validate=True))
    if not found or min(map(len, found)) < MIN_KEY_BYTES:
        raise ValueError
    return found


def main() -> None:
    """Receive until stopped. What was answered 2xx is on disk, so any way to stop will do."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("address", help="host:port to listen on; port 0 takes a free one")
    parser.add_argument("database", help="the SQLite file, made where there is none")
    arguments = parser.parse_args()
    try:
        Receiver.keys = keys(os.environ.get("PALIADIN_CALLBACK_SECRET", ""))
    except ValueError:
        sys.exit(
            "PALIADIN_CALLBACK_SECRET must hold one whsec_<base64> of 24 bytes or more, or several"
        )
    Receiver.database = arguments.database
    os.umask(0o077)  # answers are for nobody else on this host
    host, _, port = arguments.address.rpartition(":")
    ThreadingHTTPServer.request_queue_size = 64  # the default of 5 is short for a burst
    with ThreadingHTTPServer((host, int(port)), Receiver) as server:
        print(f"listening on {host}:{server.server_port}", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
