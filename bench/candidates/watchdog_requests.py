"""watchdog's observer and a requests session, as their documentations show them.

watchdog_requests.py ROOT PORT
"""

from __future__ import annotations

import sys
from pathlib import Path

import requests
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer


class Handler(FileSystemEventHandler):  # type: ignore[misc,unused-ignore]  # where it is not installed
    """Posts what was closed or renamed to a turn file's name."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()

    def on_closed(self, event: FileSystemEvent) -> None:
        """A writer is done."""
        self._post(str(event.src_path))

    def on_moved(self, event: FileSystemEvent) -> None:
        """A draft got its name."""
        self._post(str(event.dest_path))

    def _post(self, path: str) -> None:
        if path.endswith(".txt"):
            self._session.post(self._url, data=Path(path).read_bytes(), timeout=10)


def main() -> None:
    """Watch for ever."""
    observer = Observer()
    observer.schedule(Handler(f"http://127.0.0.1:{sys.argv[2]}/"), sys.argv[1])
    observer.start()
    observer.join()


main()
