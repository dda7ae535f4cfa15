"""A polling loop, as one writes it in an evening: list, post what is new, sleep.

poll.py ROOT PORT SECONDS
"""

from __future__ import annotations

import http.client
import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Poll for ever."""
    root, port, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    connection = http.client.HTTPConnection("127.0.0.1", port)
    seen: set[str] = set()
    while True:
        new = [n for n in os.listdir(root) if n.endswith(".txt") and n not in seen]  # noqa: PTH208 - names alone
        for name in new:
            seen.add(name)
            connection.request("POST", "/", (root / name).read_bytes())
            connection.getresponse().read()
        time.sleep(seconds)


main()
