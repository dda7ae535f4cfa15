from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from contextlib import closing

import anyio
import pytest

from paliadin_sidecar.host.resources import Alarm, Threads, next_tick, wait_within


@pytest.mark.anyio
async def test_they_are_there_before_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system grants no more threads, calls go on."""
    with closing(Threads(2, "test")) as threads:

        def refuse(*_: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert await threads(sum, (1, 2)) == 3
        assert await threads.begin(sum, (3, 4)) == 7


def test_too_few_are_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the first call comes."""
    start, room = threading.Thread.start, iter([True, False])

    def start_one(thread: threading.Thread) -> None:
        if not next(room):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="new thread"):
        Threads(2, "test")


@pytest.mark.anyio
async def test_who_is_cancelled_waits_for_the_end_of_the_call() -> None:
    """What the call uses may be closed right afterwards."""
    began, go_on, ended = threading.Event(), threading.Event(), []

    def call() -> None:
        began.set()
        go_on.wait()
        ended.append(True)

    with closing(Threads(1, "test")) as threads:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(threads, call)
            await anyio.to_thread.run_sync(began.wait)
            tasks.cancel_scope.cancel()
            go_on.set()
    assert ended == [True]


@pytest.mark.anyio
async def test_who_abandons_a_call_leaves_it_to_its_thread() -> None:
    """A name that does not resolve holds nobody but its thread."""
    began, go_on = threading.Event(), threading.Event()

    def call() -> None:
        began.set()
        go_on.wait()

    async def wait() -> None:
        await threads.begin(call)

    with closing(Threads(1, "test")) as threads:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.to_thread.run_sync(began.wait)
            tasks.cancel_scope.cancel()
        go_on.set()


_PROGRAM = """
import resource, sys
from paliadin_sidecar.host.resources import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[1:])))
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "held", "becomes"),
    [
        (1024, 4096, 1024, 4096),  # as far as is of use
        (256, 512, 128, 512),  # as far as it is permitted
        (8192, 8192, 2048, 8192),  # never lower than it was
    ],
)
def test_the_soft_limit_is_raised(soft: int, hard: int, held: int, becomes: int) -> None:
    """A part of it is for files that are held open; the rest is for everything else."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(soft), str(hard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert tuple(map(int, done.stdout.split())) == (held, becomes, hard)


@pytest.mark.parametrize(
    ("now", "expected"), [(0.0, 2.0), (0.1, 2.0), (1.999, 2.0), (2.0, 4.0), (7.5, 8.0)]
)
def test_all_wait_for_the_same_time(now: float, expected: float) -> None:
    """Whenever each began to wait, it is the same multiple, and never the present."""
    assert next_tick(now, 2.0) == expected


@pytest.mark.anyio
async def test_an_event_or_its_time() -> None:
    """Whichever comes first ends the wait, and no timer is left."""
    event = asyncio.Event()
    await wait_within(event, 0.0)
    assert event.is_set()
    await wait_within(event, None)
    other = asyncio.Event()
    asyncio.get_running_loop().call_soon(other.set)
    await wait_within(other, 3600.0)


@pytest.mark.anyio
async def test_the_earliest_of_several_times() -> None:
    """It calls once, and then at the times that were set since."""
    calls = 0
    called = asyncio.Event()

    def call() -> None:
        nonlocal calls
        calls += 1
        called.set()

    alarm = Alarm(call)
    alarm.set(3600.0)
    alarm.set(0.0)
    alarm.set(1800.0)
    await called.wait()
    called.clear()
    alarm.set(0.0)
    alarm.cancel()
    alarm.cancel()
    alarm.set(0.0)
    await called.wait()
    assert calls == 2
