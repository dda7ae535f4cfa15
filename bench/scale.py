"""`make bench-scale`: how far several processes with one PostgreSQL go, here and by arithmetic.

    python -m bench.scale [--try]

It needs some three minutes. The tables go into docs/scale.md; with `--try` each part is measured
with tiny sizes, and printed.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import platform
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from demo.many import app as many_app
from demo.processes import Daemons, are_listening, module
from demo.receiver import reserve
from support.postgresql import NotInstalled, running
from support.waiting import until

from bench.day import MEDIAN_S, Day, simulate
from bench.inbox import request, send, turn_id
from bench.measures import commit_ms
from paliadin_client import Inbox, TurnRequest, User, connect
from paliadin_client.store.postgresql.migration import migrate
from paliadin_client.testing import FakeHost
from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from support.postgresql import PostgreSQL

_PAGE = Path(__file__).parents[1] / "docs/scale.md"
_BEGIN, _END = "<!-- measured: written by `make bench-scale` -->", "<!-- end of measured -->"
#: What the tests spare is what is measured here.
_SETTINGS = "-c fsync=on"
_PROCESSES = (1, 2, 4)
_GOAL_PER_S, _GOAL_MORE_MS = 1_000, 15
#: Where clients that are not asked for anything would ask.
_NOWHERE = {"PALIADIN_BACKEND": "aichat", "AICHAT_URL": "http://127.0.0.1:9", "AICHAT_TOKEN": "t"}
_WARM = 200
#: An answer of 4 KB that does not repeat itself, since PostgreSQL compresses what does.
_TEXT = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz    ", k=4_000))
#: So that who waits does so by then.
_REST_S = 0.02


@dataclass(frozen=True)
class _Sizes:
    callbacks: int = 3_000
    rounds: int = 3
    latencies: int = 300
    waiters: tuple[int, ...] = (100, 1_000, 10_000)
    idle_s: float = 10.0
    woken: int = 100
    turns: int = 2_000
    days: tuple[tuple[int, int, int], ...] = (
        (10_000, 200, 2), (100_000, 2_000, 10), (1_000_000, 20_000, 100),
    )  # fmt: skip


_TRIAL = _Sizes(
    callbacks=50, rounds=1, latencies=5, waiters=(10,), idle_s=0.5, woken=3, turns=20,
    days=((1_000, 50, 3),),
)  # fmt: skip


def main() -> None:
    """Measure, and write."""
    arguments = argparse.ArgumentParser(prog="bench.scale", description=__doc__)
    arguments.add_argument("--try", action="store_true", dest="trial", help="tiny sizes")
    options = arguments.parse_args()
    text = measured(_TRIAL if options.trial else _Sizes())
    print(text)
    if not options.trial:
        before, _, rest = _PAGE.read_text().partition(_BEGIN)
        _, _, after = rest.partition(_END)
        _PAGE.write_text(f"{before}{_BEGIN}\n\n{text}\n\n{_END}{after}")


def measured(sizes: _Sizes) -> str:
    """All tables, as Markdown."""
    per_s: dict[str, list[float]] = {}
    near: list[float] = []
    away: list[float] = []
    waiting: list[list[str]] = []
    whole: list[list[str]] = []
    for system in (True, False):
        try:
            with running(system=system, settings=_SETTINGS) as server:
                name = _version(server)
                if name in per_s:
                    continue  # there is no other one
                per_s[name] = [
                    statistics.median(
                        callbacks_per_s(server, processes, sizes.callbacks)
                        for _ in range(sizes.rounds)
                    )
                    for processes in _PROCESSES
                ]
                if not near:
                    near, away = latencies(server, sizes.latencies)
                    waiting = [waiters(server, count, sizes) for count in sizes.waiters]
                    whole = [whole_turns(server, sizes.turns)]
        except NotInstalled:
            continue
    more = statistics.median(away) - statistics.median(near)
    best = max(max(row) for row in per_s.values())
    goals = [
        [f"callbacks a second by 8 senders, each committed: ≥ {_GOAL_PER_S:,}", f"{best:,.0f}",
         _reached(best >= _GOAL_PER_S)],
        [f"a waiter elsewhere: ≤ {_GOAL_MORE_MS} ms more at the median", f"{more:.1f} ms",
         _reached(more <= _GOAL_MORE_MS)],
    ]  # fmt: skip
    pages = [
        ["in the process that was called", *_times(near)],
        ["in another process", *_times(away)],
    ]
    return "\n\n".join(
        [
            (f"On {os.cpu_count()} cores with {_memory_gib():.0f} GiB, Linux "
            f"{platform.release().split('-')[0]}, Python {platform.python_version()}; a commit of "
            f"4 KB to this disk takes {commit_ms(None):.2f} ms."),
            _table(["goal", "measured", "reached"], goals),
            ("Callbacks a second by 8 senders (4 KB, signed; each stored with its row in the "
            "app's table, and committed):"),
            _table(
                ["", *(f"{count} process{'es' * (count > 1)}" for count in _PROCESSES)],
                [[name, *(f"{each:,.0f}" for each in row)] for name, row in per_s.items()],
            ),
            "From a push that is sent until the page has the answer:",
            _table(["the page waits", "median", "p99", "worst"], pages),
            "Users who wait in one process (`result`), their answers pushed to another one:",
            _table(
                ["waiting", "memory", "CPU meanwhile", "median", "p99"],
                waiting,
            ),
            ("Whole turns of one process, 64 at once, and a host that answers at once (`run_turn`, "
            "the push, the window, the row in the app's table):"),
            _table(
                ["turns a second", "CPU of the process a turn", "transactions a turn",
                 "WAL a turn", "kept of a turn for 90 days"],
                whole,
            ),
            f"A day of an office, simulated; a turn takes {MEDIAN_S:.0f} s at the median:",
            _table(
                ["turns a day", "users", "hosts", "callbacks a second, busiest hour",
                 "most in a second", "most waiting at once", "turns that queued",
                 "users on a host", "most at work on one host"],
                [_day_row(simulate(*day)) for day in sizes.days],
            ),
        ]
    )  # fmt: skip


def callbacks_per_s(server: PostgreSQL, processes: int, count: int) -> float:
    """Callbacks a second that so many processes of an app take from 8 senders."""
    with apps(server, processes) as (ports, keys, _):
        requests = [request(keys, number) for number in range(_WARM + count)]
        return asyncio.run(send(ports, requests[:_WARM], requests[_WARM:]))


def latencies(server: PostgreSQL, count: int) -> tuple[list[float], list[float]]:
    """From a push to the answer on a page, in ms: in the process that is called, and elsewhere."""

    async def one(page: int, called: int, number: int, keys: Keys) -> float:
        reader, writer = await asyncio.open_connection("127.0.0.1", page)
        writer.write(f"GET /turns/{turn_id(number)} HTTP/1.0\r\n\r\n".encode())
        await asyncio.sleep(_REST_S)  # it waits by then
        content = request(keys, number)
        pushing, push = await asyncio.open_connection("127.0.0.1", called)
        began = time.perf_counter()
        push.write(content)
        head = await reader.readuntil(b"\r\n\r\n")
        took = time.perf_counter() - began
        assert b" 200 " in head, head
        await pushing.readuntil(b"\r\n\r\n")
        writer.close()
        push.close()
        return took * 1000

    async def all_of_them(ports: list[int], keys: Keys) -> tuple[list[float], list[float]]:
        found: tuple[list[float], list[float]] = [], []
        for number in range(2 * count + 20):
            took = await one(ports[0], ports[number % 2], number, keys)
            if number >= 20:
                found[number % 2].append(took)
        return found

    with apps(server, 2) as (ports, keys, _):
        return asyncio.run(all_of_them(ports, keys))


def waiters(server: PostgreSQL, count: int, sizes: _Sizes) -> list[str]:
    """A row of the table: so many wait in a process of their own."""
    with (
        apps(server, 1) as (ports, _, environ),
        ProcessPoolExecutor(1, get_context("spawn")) as process,
    ):
        waiting = process.submit(_wait, count, ports[0], environ, sizes.idle_s, sizes.woken)
        memory_kib, cpu, times = waiting.result()
    median, p99, _ = _times(times)
    return [f"{count:,}", f"{memory_kib / 1024:.0f} MiB", f"{cpu:.1%} of a core", median, p99]


def _wait(
    count: int, port: int, environ: dict[str, str], idle_s: float, woken: int
) -> tuple[float, float, list[float]]:
    async def wait() -> tuple[float, float, list[float]]:
        secret = environ["PALIADIN_CALLBACK_SECRET"]
        inbox = Inbox([secret], store=environ["PALIADIN_STORE"])
        keys, times = Keys([secret]), []
        async with connect(inbox=inbox, environ=environ) as paliadin:
            before = _resident_kib()
            pages = [
                asyncio.create_task(paliadin.result(turn_id(number), timeout=600))
                for number in range(count)
            ]
            await asyncio.sleep(1)
            memory = _resident_kib() - before
            cpu = time.process_time()
            await asyncio.sleep(idle_s)
            cpu = (time.process_time() - cpu) / idle_s
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for number in random.Random(1).sample(range(count), woken):
                content = request(keys, number)
                began = time.perf_counter()
                writer.write(content)
                await pages[number]
                times.append((time.perf_counter() - began) * 1000)
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(_REST_S)
            writer.close()
            for page in pages:
                page.cancel()
            await asyncio.gather(*pages, return_exceptions=True)
        return memory, cpu, times

    return asyncio.run(wait())


def whole_turns(server: PostgreSQL, count: int) -> list[str]:
    """The row of the table."""
    name = _new_database(server)
    host = FakeHost()
    host.answers(_TEXT)
    inbox = Inbox([host.secret], on_turn=many_app.on_turn, store=server.url(name))

    async def ask() -> tuple[float, float]:
        limit = asyncio.Semaphore(64)
        async with host.connect(inbox=inbox, environ={}) as paliadin:

            async def one(number: int) -> None:
                async with limit:
                    user = User(f"user-{number}", email=f"u{number}@example.org")
                    await paliadin.run_turn(TurnRequest(user=user, message="Welche Fristen?"))

            await asyncio.gather(*map(one, range(_WARM)))
            cpu, began = time.process_time(), time.monotonic()
            await asyncio.gather(*map(one, range(_WARM, _WARM + count)))
            return time.monotonic() - began, time.process_time() - cpu

    before = _written(server, name)
    took, cpu = asyncio.run(ask())
    turns = _WARM + count
    transactions, wal = (
        (then - now) / turns for then, now in zip(_written(server, name), before, strict=True)
    )
    # What is left of them after 28 h.
    tables = ("paliadin.pushes", "paliadin.turns", "paliadin.windows")
    server.sql("UPDATE paliadin.turns SET body = NULL", name)
    for table in tables:
        server.sql(f"VACUUM FULL {table}", name)
    select = " + ".join(f"pg_total_relation_size('{table}')" for table in tables)
    kept = int(server.sql(f"SELECT {select}", name)) / turns
    return [
        f"{count / took:,.0f}", f"{cpu / count * 1000:.1f} ms", f"{transactions:.1f}",
        f"{wal / 1024:.0f} KiB", f"{kept:.0f} B",
    ]  # fmt: skip


def _written(server: PostgreSQL, name: str) -> tuple[float, float]:
    """How many transactions a database has had, and how many bytes of WAL there are."""
    select = "SELECT xact_commit, pg_current_wal_lsn() - '0/0' FROM pg_stat_database"
    commits, wal = server.sql(f"{select} WHERE datname = '{name}'", name).strip().split("|")
    return float(commits), float(wal)


@contextmanager
def apps(server: PostgreSQL, count: int) -> Iterator[tuple[list[int], Keys, dict[str, str]]]:
    """So many processes of an app on a new database: ports, what signs, and their environment."""
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    environ = _NOWHERE | {
        "PALIADIN_STORE": server.url(_new_database(server)),
        "PALIADIN_CALLBACK_SECRET": secret,
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        daemons = Daemons(Path(folder))
        held = [reserve() for _ in range(count)]
        ports = [each.getsockname()[1] for each in held]
        try:
            for port in ports:
                command = [*module("demo.many.app"), f"app at {port}", str(port)]
                daemons.start(str(port), command, **environ)
            until("the processes", lambda: are_listening(*ports))
            yield ports, Keys([secret]), environ
        finally:
            daemons.close()
            for each in held:
                each.close()


def _new_database(server: PostgreSQL) -> str:
    name = server.new_database()
    anyio.run(migrate, server.url(name))
    server.sql(many_app.TABLE, name)
    return name


def _day_row(day: Day) -> list[str]:
    most, average = day.agents
    return [
        f"{day.turns:,}", f"{sum(day.users):,}", str(len(day.users)), f"{day.busiest_hour_s:,.1f}",
        str(day.busiest_s), f"{day.waiting:,}", f"{day.queued:.1%}",
        f"{day.users[0]} to {day.users[-1]}", f"{most} ({average:.0f} on average then)",
    ]  # fmt: skip


def _times(times_ms: list[float]) -> list[str]:
    ordered = sorted(times_ms)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return [f"{each:.1f} ms" for each in (statistics.median(ordered), p99, ordered[-1])]


def _version(server: PostgreSQL) -> str:
    return f"PostgreSQL {server.sql('SHOW server_version').split()[0]}"


def _resident_kib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def _reached(holds: object) -> str:
    return "yes" if holds else "no"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["--:"] * (len(heads) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
