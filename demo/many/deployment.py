"""The processes of the demo: hosts and their sidecars, the app's, its PostgreSQL, one address."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
from contextlib import ExitStack
from typing import TYPE_CHECKING
from uuid import uuid4

from support.balancer import balancer
from support.postgresql import running

from demo.many.app import TABLE
from demo.processes import (
    Daemons,
    are_listening,
    directory,
    end_tmux,
    module,
    remove_all_but,
)
from demo.receiver import reserve
from paliadin_client.hosts import rendezvous

if TYPE_CHECKING:
    from pathlib import Path
    from signal import Signals

HOSTS = ("mriver", "mlake", "mbrook")
APPS = ("app 1", "app 2", "app 3", "app 4")


class Deployment:
    """Three hosts, and an app of four processes that are behind one address.

    Whoever makes one closes it.

    Attributes:
        base: holds everything, for its owner alone.
        logs: what all processes say.
        roots: where each host's agents write.
        database: the app's.
        port: of loopback, where users ask and sidecars push.
    """

    def __init__(self) -> None:
        self.base = directory()
        self.logs = self.base / "logs"
        self.roots = {host: self.base / host / "answers" for host in HOSTS}
        for folder in (self.logs, *self.roots.values()):
            folder.mkdir(mode=0o700, parents=True)
        self._ports = {name: reserve() for name in (*HOSTS, *APPS)}
        self._urls = {host: f"http://127.0.0.1:{self._port(host)}" for host in HOSTS}
        keys = {host: base64.b64encode(secrets.token_bytes(32)).decode() for host in HOSTS}
        self._secrets = {host: f"whsec_{key}" for host, key in keys.items()}
        self._aichat_token, self._jwt_secret = (secrets.token_urlsafe(32) for _ in range(2))
        self._daemons = Daemons(self.logs)
        self._stack = ExitStack()
        try:
            self.database = self._stack.enter_context(running())
            self.port = self._stack.enter_context(balancer(*map(self._port, APPS))).port
        except BaseException:
            self.close(keep_logs=False)
            raise

    @property
    def store(self) -> str:
        """The connection string of the database."""
        return self.database.url()

    def start(self) -> None:
        """Start all of it; the store's tables are there."""
        self.database.sql(TABLE)
        for host in HOSTS:
            self.start_host(host)
            self.start_sidecar(host)
        for app in APPS:
            self.start_app(app)

    def start_host(self, host: str) -> None:
        """Start a host's aichat, which names turns itself; it starts the agents."""
        personas = self.base / host / "personas.toml"
        answers = json.dumps(str(self.roots[host]), ensure_ascii=False)  # quoted as in TOML
        personas.write_text(f"[paliadin]\nanswers = {answers}\n", encoding="utf-8")
        options = ("--port", str(self._port(host)), "--tmux", str(self._tmux(host)), "--own-ids")
        self._daemons.start(
            host, [*module("demo.aichat"), str(personas), *options], AICHAT_TOKEN=self._aichat_token
        )

    def start_sidecar(self, host: str) -> None:
        """Start a host's sidecar, as it is shipped but for where it looks and keeps its state."""
        self._daemons.start(
            _sidecar(host),
            # Without a file, since that of a sidecar that serves this very host is not the demo's.
            [*module("paliadin_sidecar.operator.cli"), "run", "--env-file", os.devnull],
            PALIADIN_CALLBACK_URL=f"http://127.0.0.1:{self.port}/callback",
            PALIADIN_CALLBACK_SECRET=self._secrets[host],
            PALIADIN_WATCH=f"aichat/paliadin={self.roots[host]}",
            PALIADIN_STATE_DIR=str(self.base / host / "state"),
            PALIADIN_HOST_LABEL=host,
        )

    def start_app(self, app: str) -> None:
        """Start a process of the app."""
        self._daemons.start(
            app,
            [*module("demo.many.app"), app, str(self._port(app))],
            PALIADIN_BACKEND="aichat",
            AICHAT_URL=" ".join(self._urls.values()),
            AICHAT_TOKEN=self._aichat_token,
            SUPABASE_JWT_SECRET=self._jwt_secret,
            PALIADIN_STORE=self.store,
            PALIADIN_CALLBACK_SECRET=" ".join(f"{h}={key}" for h, key in self._secrets.items()),
        )

    def are_up(self) -> bool:
        """Whether everything takes connections that should.

        Raises:
            HostError: something ended by itself.
        """
        self._daemons.check()
        return are_listening(*map(self._port, (*HOSTS, *APPS)))

    def end(self, name: str, number: Signals) -> int:
        """Signal a process of the app, and return its exit code."""
        return self._daemons.end(name, number)

    def end_sidecar(self, host: str, number: Signals) -> int:
        """The same for a host's sidecar."""
        return self._daemons.end(_sidecar(host), number)

    def user_id(self, host: str) -> str:
        """The id of a new user whose host is this one."""
        urls = tuple(self._urls.values())
        while rendezvous(user := str(uuid4()), urls)[0] != self._urls[host]:
            pass
        return user

    def under_way(self) -> int:
        """How many turns the hosts are at: the token of each lies beside its answer."""
        return sum(len([*root.glob("*.jwt")]) for root in self.roots.values())

    def written(self) -> int:
        """How many answers are written."""
        return sum(len([*root.glob("*.txt")]) for root in self.roots.values())

    def stored(self) -> list[tuple[str, str]]:
        """The answers in the app's table: turns and texts, each as often as it is there."""
        found = self.database.sql("SELECT json_build_array(turn, coalesce(text, '')) FROM answers")
        return [(turn, text) for turn, text in map(json.loads, found.splitlines())]

    def close(self, *, keep_logs: bool) -> list[str]:
        """End every process and remove every file, but for the logs where they are wanted.

        Returns:
            What is left all the same.
        """
        self._daemons.close()
        left = [what for host in HOSTS for what in end_tmux(self._tmux(host))]
        self._stack.close()
        for port in self._ports.values():
            port.close()
        remove_all_but(self.logs, self.base)
        if not keep_logs:
            shutil.rmtree(self.base)
        return left

    def _port(self, name: str) -> int:
        return int(self._ports[name].getsockname()[1])

    def _tmux(self, host: str) -> Path:
        return self.base / host / "tmux"


def _sidecar(host: str) -> str:
    return f"sidecar of {host}"
