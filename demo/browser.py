"""Debian's chromium without a window, spoken to over two pipes (its DevTools protocol)."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

#: Nothing that is asked of it takes so long, in seconds.
_PATIENCE_S = 60.0
_PAGE_EVENTS = ("Page", "Runtime", "Log", "Network")


class Browser:
    """One page. What it says on its console, and what it asks for, is kept.

    Attributes:
        requests: the address of each request.
        messages: what came to the console: errors, warnings and refusals of the page's policy.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.messages: list[str] = []
        self._number = 0
        self._unread = b""
        self._events: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._home = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        to_read, self._write_fd = _pipe()
        self._read_fd, to_write = _pipe()
        # Descriptors 3 and 4 are where it listens and speaks.
        moved = f'exec "$@" 3<&{to_read} 4>&{to_write} 2>"$HOME/log"'
        command = [
            *("bash", "-c", moved, "bash", "chromium"),
            *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
            *("--no-first-run", "--disable-extensions", "--hide-scrollbars", "--mute-audio"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--disable-dev-shm-usage", f"--user-data-dir={self._home.name}/profile"),
            "about:blank",
        ]
        self._process = subprocess.Popen(
            command,
            pass_fds=(to_read, to_write),
            env=os.environ | {"HOME": self._home.name},
            stdout=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        targets = self._call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in _PAGE_EVENTS:
            self.call(f"{domain}.enable")
        self.look()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError, RuntimeError, ValueError):
            self._call("Browser.close")
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write_fd)
        os.close(self._read_fd)
        self._home.cleanup()

    def call(self, method: str, **values: object) -> dict[str, Any]:
        """Call a method of the protocol on the page, and return what it gives back."""
        return self._call(method, self._session, **values)

    def open(self, address: str) -> None:
        """Show a page, and wait until all of it is there; what is kept is of this one alone."""
        self._events.clear()
        self.requests.clear()
        self.messages.clear()
        self.call("Page.navigate", url=address)
        self._wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:  # noqa: ANN401 - whatever JSON can say
        """What an expression of JavaScript is on the page, which need not permit scripts."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise ValueError(found["exceptionDetails"]["exception"]["description"])
        return found["result"].get("value")

    def look(
        self, *, width: int = 1280, dark: bool = False, paper: bool = False, scale: float = 1
    ) -> None:
        """Be the screen of a person.

        Args:
            width: of the window, in CSS pixels.
            dark: whether its user prefers dark pages.
            paper: show pages as they are printed.
            scale: device pixels for each CSS pixel.
        """
        preference = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        kind = "print" if paper else ""
        self.call("Emulation.setEmulatedMedia", media=kind, features=[preference])
        size = {"width": width, "height": 900, "deviceScaleFactor": scale}
        self.call("Emulation.setDeviceMetricsOverride", mobile=width < 600, **size)  # noqa: PLR2004 - a phone's

    def press(self, key: str, code: int) -> None:
        """Press a key and let it go."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        if key == "Enter":
            about["text"] = "\r"
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path: Path, first: str, last: str) -> None:
        """Keep a part of the page as a PNG, as wide as the screen.

        Args:
            path: of the PNG.
            first: a selector of what stands at its top.
            last: and of what begins below it.
        """
        top, bottom = (
            self.value(f"document.querySelector('{one}').getBoundingClientRect().top + scrollY")
            for one in (first, last)
        )
        width = self.value("innerWidth")
        clip = {"x": 0, "y": top, "width": width, "height": bottom - top, "scale": 1}
        found = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    def print(self, path: Path) -> None:
        """Print it on A4, as the page itself says."""
        found = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(found["data"]))

    def _call(self, method: str, session: str | None = None, **values: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if session is not None:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write_fd, data) :]
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise ValueError(f"{method}: {answer['error']['message']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _wait_for(self, event: str) -> None:
        while not any(one["method"] == event for one in self._events):
            self._next()

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._read_fd], [], [], max(0, end - time.monotonic()))
            data = os.read(self._read_fd, 1 << 20) if ready else b""
            if not data:
                log = Path(self._home.name, "log")
                raise RuntimeError("chromium says nothing", log.read_text() if log.exists() else "")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self._note(message)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        params = event.get("params", {})
        match event["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded":
                self.messages.append(params["entry"]["text"])
            case "Runtime.consoleAPICalled":
                self.messages.append(str([one.get("value") for one in params["args"]]))
            case "Runtime.exceptionThrown":
                self.messages.append(params["exceptionDetails"]["text"])


def _pipe() -> tuple[int, int]:
    # Neither end is one of the descriptors that are given away.
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
