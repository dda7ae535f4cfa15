"""A receiver on loopback: verifies each callback, writes down what came, answers then.

    PALIADIN_CALLBACK_SECRET=whsec_… python -m demo.receiver PORT LOG

It keeps every arrival, also one that it had already, for whoever compares it afterwards.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from paliadin_contract.errors import BadSignature
from paliadin_contract.signature import Keys

__all__ = ["Receiver"]


class Receiver(BaseHTTPRequestHandler):
    """One connection."""

    keys: ClassVar[Keys]
    log: ClassVar[int]  # a descriptor open for appending
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Take one callback."""
        body = self.rfile.read(int(self.headers["content-length"]))
        now = datetime.now(UTC)
        try:
            webhook_id, refused = self.keys.verify(dict(self.headers.items()), body, now), ""
        except BadSignature as exc:
            webhook_id, refused = "", str(exc)
        line = {
            "at": now.timestamp(),
            "webhook_id": webhook_id,
            "refused": refused,
            "body": "" if refused else body.decode(),
        }
        # One write for each line, so that those of several threads do not mix.
        os.write(self.log, json.dumps(line).encode() + b"\n")
        self.send_response_only(401 if refused else 204)
        if refused:
            self.send_header("content-length", "0")
        self.end_headers()


def _main(port: int, log: str) -> None:
    Receiver.keys = Keys(os.environ["PALIADIN_CALLBACK_SECRET"].split())
    Receiver.log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with ThreadingHTTPServer(("127.0.0.1", port), Receiver) as server:
        server.serve_forever()


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2])
