"""Fixtures and settings for all tests."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from support.receiver import Receiver
from support.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# The same examples in each run, whatever the last one left: `make chaos` searches at random. A
# busy machine is no fault of the code: how long one example takes decides nothing.
settings.register_profile(
    "thorough", deadline=None, derandomize=True, database=None, max_examples=150
)
settings.register_profile("usual", settings.get_profile("thorough"), max_examples=20)
settings.load_profile("usual")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first, so that nobody waits for it alone in the end."""
    items.sort(key=lambda item: item.path.name != "test_model.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was not tested, a line for each reason, which names what mends it."""
    skipped = terminalreporter.stats.get("skipped", ())
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in sorted(reasons.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{count:4} skipped, {' '.join(reason.split())}")


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that the daemon runs on."""
    return "asyncio"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        yield server


@pytest.fixture
def host(tmp_path: Path, receiver: Receiver) -> Iterator[Sidecar]:
    """A host with both roots; the daemon is not started yet."""
    sidecar = Sidecar(tmp_path, receiver.url)
    sidecar.make_roots()
    yield sidecar
    sidecar.close()
