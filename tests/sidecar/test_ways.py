"""Every way in which a file becomes complete or changes, through the daemon with each engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.ways import APPEAR, CHANGE, content

if TYPE_CHECKING:
    from support.receiver import Receiver
    from support.sidecar import Sidecar

#: Longer than a test waits: what only a scan finds does not pass.
NO_SCAN_S = "60"


@pytest.fixture(params=["watchfiles", "inotify"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_each_way_to_appear(host: Sidecar, receiver: Receiver, engine: str) -> None:
    """The answer goes out at an event, whichever way the file came."""
    host.environ |= {"PALIADIN_EVENTS": engine, "PALIADIN_RESCAN_S": NO_SCAN_S}
    host.start()
    for n, way in enumerate(APPEAR.values()):
        path = host.aichat / f"t{n}.txt"
        way(path)
        assert receiver.wait(path.stem).json["data"]["response"].encode() == content(path)


def test_each_way_to_change(host: Sidecar, receiver: Receiver, engine: str) -> None:
    """A revision goes out at an event, too, whichever way the file changed."""
    host.environ |= {"PALIADIN_EVENTS": engine, "PALIADIN_RESCAN_S": NO_SCAN_S}
    host.start()
    ways = {name: way for name, way in CHANGE.items() if (engine, name) != ("watchfiles", "mmap")}
    for n, way in enumerate(ways.values()):
        path = host.aichat / f"t{n}.txt"
        path.write_bytes(content(path).replace(b"Antwort", b"Entwurf"))
        receiver.wait(path.stem)
        way(path)
        found = receiver.wait(path.stem, 2).json["data"]
        assert (found["revision"], found["response"].encode()) == (2, path.read_bytes())


def test_a_change_that_no_event_tells_of(host: Sidecar, receiver: Receiver, engine: str) -> None:
    """The next scan finds it in a file that was taken lately, though no name moved."""
    host.environ["PALIADIN_EVENTS"] = engine
    host.start()
    path = host.aichat / "t1.txt"
    path.write_bytes(content(path).replace(b"Antwort", b"Entwurf"))
    receiver.wait("t1")
    CHANGE["mmap"](path)
    data = receiver.wait("t1", 2).json["data"]
    assert (data["revision"], data["response"].encode()) == (2, content(path))
