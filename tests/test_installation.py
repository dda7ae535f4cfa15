"""What the documents say to install is installed so, and runs no code that has no hash.

The packages come from a directory of this machine, over HTTP, so that each fetch is seen.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from packaging.requirements import Requirement

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: Each block of commands that installs, by its document and name, and what it installs beside pip.
BLOCKS = {
    ("README.md", "install"): ("sidecar", "build"),
    ("README.md", "client"): ("client", "build"),
    ("docs/operate.md", "upgrade"): ("sidecar", "build"),
    ("docs/operate.md", "back"): ("sidecar", "build"),
    ("docs/client.md", "install"): ("cli", "build"),
    ("docs/audit.md", "install the report"): ("report",),
    ("docs/client.md", "install-postgresql"): ("cli", "postgresql", "build"),
}
CLIENT = """
import sys
import anyio, httpx2, jwt
import paliadin_client
from paliadin_client import Inbox, TurnRequest, User

async def main():
    environ = {"PALIADIN_BACKEND": "aichat", "AICHAT_TOKEN": "t"}
    environ["AICHAT_URL"] = "http://127.0.0.1:1"
    inbox = Inbox(["whsec_" + "A" * 32], dedupe=sys.argv[1])
    async with paliadin_client.connect(inbox=inbox, environ=environ) as paliadin:
        try:
            await paliadin.run_turn(TurnRequest(user=User("u", email="a@example.org"), message="?"))
        except paliadin_client.PaliadinError as exc:
            return exc.code

print(anyio.run(main))
"""
INSTALLED = """
import importlib.metadata, json
print(json.dumps([each.metadata["Name"] for each in importlib.metadata.distributions()]))
"""


class Index:
    """A package index with what is locked, which remembers what was fetched from it."""

    def __init__(self, folder: Path) -> None:
        self.fetched: list[str] = []
        self._folder = folder

    def __enter__(self) -> Self:
        fetched = self.fetched

        class Handler(SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                fetched.append(self.path)
                super().do_GET()

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        handler = partial(Handler, directory=str(self._folder))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def environ(self) -> dict[str, str]:
        """What lets pip know this index and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        return kept | {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_INDEX_URL": f"http://127.0.0.1:{self._server.server_port}/",
            "PIP_NO_CACHE_DIR": "1",
            "PYTHONWARNINGS": "",
            "no_proxy": "127.0.0.1",
        }


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    base = tmp_path_factory.mktemp("index")
    locks = {lock for locks in BLOCKS.values() for lock in locks}
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", f"--dest={base}/all"),
            *("--only-binary=:all:", "--require-hashes"),
            *(f"--requirement={ROOT}/requirements/{lock}.txt" for lock in sorted(locks)),
        ],
        check=True,
    )
    for file in (base / "all").iterdir():
        folder = base / "simple" / normal(file.name.partition("-")[0])
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    with Index(base / "simple") as index:
        yield index


def normal(name: str) -> str:
    """A distribution's name as indexes and locks spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(lock: str) -> set[str]:
    """The packages that a lock names for this Python and this system."""
    text = (ROOT / f"requirements/{lock}.txt").read_text()
    lines = re.findall(r"^([\w.-]+==[^\\\n]+)", text, re.MULTILINE)
    named = [Requirement(line) for line in lines]
    return {normal(one.name) for one in named if one.marker is None or one.marker.evaluate()}


def pip_commands(text: str) -> list[str]:
    """Each line that runs pip to install something, joined with the lines it goes on in."""
    lines = text.replace("\\\n", " ").splitlines()
    pip = re.compile(r"\bpip\b.* (install|wheel|download)\b")
    return [line.strip() for line in lines if pip.search(line)]


def has_hashes(command: str) -> bool:
    """Whether each of its packages must be a wheel of a known hash."""
    return (
        "--require-hashes" in command and re.search(r"--only-binary[ =]:all:", command) is not None
    )


def fetches_nothing(command: str) -> bool:
    """Whether it neither asks for what this package needs nor for what builds it."""
    return "--no-deps" in command and ("--no-build-isolation" in command or "--no-index" in command)


@pytest.mark.parametrize(
    "path", [*DOCUMENTS, ROOT / "Makefile", ROOT / "Dockerfile"], ids=lambda path: path.name
)
def test_no_command_installs_what_has_no_hash(path: Path) -> None:
    """Each takes wheels whose hashes are locked, or nothing but this checkout."""
    for command in pip_commands(path.read_text()):
        for part in command.split("&&"):
            assert not pip_commands(part) or has_hashes(part) or fetches_nothing(part), part


def test_each_document_that_installs_is_tried() -> None:
    """A command that nobody ran is in no document."""
    assert {document for document, _ in BLOCKS} == {
        str(path.relative_to(ROOT)) for path in DOCUMENTS if pip_commands(path.read_text())
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("document", "name"), BLOCKS)
def test_only_what_is_locked_is_installed(
    index: Index, tmp_path: Path, document: str, name: str
) -> None:
    """Of all that is fetched, the lock has the hash; this package is built without a fetch."""
    found = re.search(
        rf"<!-- {name} -->\n```sh\n(.*?)```", (ROOT / document).read_text(), re.DOTALL
    )
    assert found
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    environ = index.environ | {"PATH": f"{environment}/bin:{os.environ['PATH']}"}
    commands = pip_commands(found[1])
    # What is added to an installation builds nothing.
    builds = "build" in BLOCKS[document, name]
    assert len(commands) == 1 + builds
    for command in commands:
        index.fetched.clear()
        moved = command.replace("/opt/paliadin", shlex.quote(str(environment)))
        done = subprocess.run(
            moved, shell=True, cwd=ROOT, env=environ, check=False, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        wheels = [path for path in index.fetched if path.endswith(".whl")]
        assert wheels if has_hashes(command) else not index.fetched, command

    python = environment / "bin/python"
    listed = subprocess.run([python, "-I", "-c", INSTALLED], check=True, stdout=subprocess.PIPE)
    wanted = set.union(*map(locked, BLOCKS[document, name])) | ({"paliadin"} if builds else set())
    installed = {*map(normal, json.loads(listed.stdout))} - {"pip", "setuptools"}
    assert installed == wanted

    if "client" in BLOCKS[document, name]:
        ran = subprocess.run(
            [python, "-I", "-c", CLIENT, tmp_path / "inbox.sqlite3"],
            check=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert ran.stdout == "mriver_unreachable\n"
        ask = subprocess.run(python.with_name("paliadin"), check=False, stderr=subprocess.PIPE)
        assert ask.returncode == 1
        assert ask.stderr.endswith(b" is not installed: docs/client.md says how\n")
        assert ask.stderr.count(b"\n") == 1
