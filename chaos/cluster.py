"""Several hosts with their sidecars, an app of several processes, its PostgreSQL, and its users."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from signal import SIGKILL
from typing import TYPE_CHECKING, Self

import anyio
import msgspec
from demo.many.app import TABLE
from demo.many.page import Page
from demo.processes import Daemons, are_listening, module
from demo.receiver import reserve
from support.balancer import balancer
from support.postgresql import running
from support.sidecar import Sidecar

from chaos.agents import answer_of
from chaos.verdict import Arrived, read
from paliadin_client.store.postgresql.migration import migrate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from support.postgresql import PostgreSQL

    from chaos.world import World

HOSTS = ("mriver", "mlake", "mbrook")
#: How many users are at it at once, and how many questions each of them asks in turn.
_USERS, _QUESTIONS = 32, 4
#: Whoever has no answer after this long has been forgotten.
_PATIENCE_S = 300.0
_TOKEN = "aichat-token-of-this-play"


class Cluster:
    """All of it, in the directory of a world, whose logs have what was written and what came.

    Args:
        world: where.
        apps: how many processes the app has.
        settings: further arguments of the PostgreSQL server.
        between: what stands between the app and the server, such as a pooler; it yields the
            connection string. By default nothing does.
        environ: more of the environment of some of the app's processes, by their names.

    Attributes:
        apps: the names of the app's processes.
        pages: what users ask, and see.
        owed: the texts that must be stored, by their turns.
        port: of loopback, where users ask and sidecars push.
        database: the server that the answers are looked up in.
        sidecars: by their hosts.
    """

    def __init__(
        self,
        world: World,
        apps: int,
        *,
        settings: str = "",
        between: Callable[[PostgreSQL], AbstractContextManager[str]] | None = None,
        environ: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._world = world
        self.apps = [f"app {number}" for number in range(1, apps + 1)]
        self.pages: list[Page] = []
        self.owed: dict[str, str] = {}
        self.callbacks = world.base / "callbacks.log"
        self._settings, self._between = settings, between
        self._environ = environ or {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with self._stack:
            stack, base = self._stack, self._world.base
            self.database = stack.enter_context(running(settings=self._settings))
            self.store = (
                stack.enter_context(self._between(self.database))
                if self._between
                else self.database.url()
            )
            anyio.run(migrate, self.database.url())
            self.database.sql(TABLE)
            self._ports = {
                name: stack.enter_context(reserve()).getsockname()[1]
                for name in (*HOSTS, *self.apps)
            }
            self.port = stack.enter_context(balancer(*(self._ports[a] for a in self.apps))).port
            self._daemons = Daemons(base)
            stack.callback(self._daemons.close)
            self.sidecars = {host: self._sidecar(host) for host in HOSTS}
            for host, sidecar in self.sidecars.items():
                sidecar.make_roots()
                stack.callback(sidecar.close)
                self._start_host(host)
            for app in self.apps:
                self.start_app(app)
            ports = [*self._ports.values()]
            self._world.until("the processes", lambda: are_listening(*ports))
            for sidecar in self.sidecars.values():
                sidecar.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        for host, sidecar in self.sidecars.items():
            (self._world.base / f"sidecar-{host}.log").write_bytes(sidecar.output)
        self._stack.close()

    def start_app(self, app: str) -> None:
        """Start a process of the app."""
        keys = " ".join(f"{host}={each.secret}" for host, each in self.sidecars.items())
        self._daemons.start(
            app,
            [*module("chaos.app"), app, str(self._ports[app]), str(self.callbacks)],
            PALIADIN_BACKEND="aichat",
            AICHAT_URL=" ".join(f"http://127.0.0.1:{self._ports[host]}" for host in HOSTS),
            AICHAT_TOKEN=_TOKEN,
            PALIADIN_STORE=self.store,
            PALIADIN_CALLBACK_SECRET=keys,
            **self._environ.get(app, {}),
        )

    def kill(self, name: str) -> None:
        """SIGKILL a process of the app, or a host's sidecar; and start it again."""
        with self._world.fault("kill"):
            if name in self.sidecars:
                self.sidecars[name].kill()
                self.sidecars[name].start(wait=False)
            else:
                self._daemons.end(name, SIGKILL)
                self.start_app(name)

    def said(self, app: str) -> str:
        """What a process of the app has logged."""
        return (self._world.base / f"{app}.err").read_text()

    # --- users ----------------------------------------------------------------------------

    @contextmanager
    def asking(self, turns: int) -> Iterator[Callable[[], bool]]:
        """Users ask so many questions while the block runs; yields whether they still do.

        It ends when each page shows its answer and all answers are stored.
        """
        self.pages = [
            Page("", f"user-{user}", f"u{user}@example.org", f"Frage {number}", asks_again=True)
            for number in range(turns)
            for user in [number // _QUESTIONS]
        ]
        for page in self.pages:
            name = page.email.partition("@")[0]
            self.owed[page.turn_id] = answer_of(name, page.question)
        with ThreadPoolExecutor(1) as thread:
            users = thread.submit(anyio.run, self._ask_all)
            yield lambda: not users.done()
            users.result()
        self.all_stored()

    async def _ask_all(self) -> None:
        limit = anyio.CapacityLimiter(_USERS)
        with anyio.fail_after(_PATIENCE_S):
            async with anyio.create_task_group() as users:
                for first in range(0, len(self.pages), _QUESTIONS):
                    pages = self.pages[first : first + _QUESTIONS]
                    users.start_soon(self._one_user, limit, pages)

    async def _one_user(self, limit: anyio.CapacityLimiter, pages: list[Page]) -> None:
        async with limit:
            for page in pages:
                with suppress(OSError, ValueError, EOFError):  # its process was killed
                    await page.ask(self.port)
                await page.look(self.port)

    # --- the account ----------------------------------------------------------------------

    def all_stored(self) -> None:
        """Wait until all that is owed is in the app's table."""
        self._world.until("the answers in the table", lambda: {*self.owed} <= {*self._stored()})

    def compare(self) -> None:
        """End the sidecars, and take over into the world's account what came of everything."""
        for host, sidecar in self.sidecars.items():
            self._world.check(sidecar.stop() == 0, f"the sidecar of {host} did not end well")
            self._world.check(not sidecar.events("service.crashed"), f"that of {host} crashed")
        self._world.took_place([], read(self.callbacks, Arrived), [])
        for page in self.pages:
            shown = page.shown.get("text", "").strip()
            right = shown == self.owed[page.turn_id]
            self._world.check(right, f"{page.turn_id} shows {shown or page.shown!r}")
        stored = self._world.until("the table", self._stored)
        for turn, text in self.owed.items():
            texts = [each.strip() for each in stored.get(turn, [])]
            self._world.check(texts == [text], f"{turn} is stored as {texts!r}")
        self._world.check(stored.keys() == self.owed.keys(), "what nobody asked is stored")

    def _stored(self) -> dict[str, list[str]]:
        """The texts in the app's table, by turn; none while it cannot be asked."""
        select = "SELECT json_build_array(turn, coalesce(text, '')) FROM answers"
        found: dict[str, list[str]] = {}
        time.sleep(0.1)
        with suppress(subprocess.CalledProcessError):  # no connection is free, or it starts
            for line in self.database.sql(select).splitlines():
                turn, text = msgspec.json.decode(line)
                found.setdefault(turn, []).append(text)
        return found

    def _sidecar(self, host: str) -> Sidecar:
        base = self._world.base / host
        base.mkdir()
        url = f"http://127.0.0.1:{self.port}/callback"
        return Sidecar(base, url, PALIADIN_HOST_LABEL=host)

    def _start_host(self, host: str) -> None:
        where = [str(self.sidecars[host].aichat), str(self._world.written)]
        command = [*module("chaos.agents"), str(self._ports[host]), *where]
        self._daemons.start(host, [*command, str(self._world.rng.random())])
