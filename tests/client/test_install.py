"""The client in an environment that has its extra and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.metadata, json, sys
import anyio, httpx, jwt
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

code = anyio.run(main)
names = sorted(each.metadata["Name"].lower() for each in importlib.metadata.distributions())
print(json.dumps([code, names]))
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_client_extra_alone(tmp_path: Path) -> None:
    """With the [client] extra alone the client runs; no more is installed, as the command says."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", tmp_path, ROOT], check=True)
    [wheel] = tmp_path.glob("paliadin-*.whl")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"{wheel}[client]"], check=True)
    ran = subprocess.run(
        [python, "-I", "-c", PROGRAM, tmp_path / "inbox.sqlite3"],
        check=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    code, names = json.loads(ran.stdout)
    assert code == "mriver_unreachable"
    command = subprocess.run(python.with_name("paliadin"), check=False, stderr=subprocess.PIPE)
    assert command.returncode == 1
    assert command.stderr.endswith(b" is not installed: pip install 'paliadin[cli]'\n")
    assert command.stderr.count(b"\n") == 1
    assert set(names) - {"pip", "setuptools", "typing_extensions", "typing-extensions"} == {
        *("anyio", "certifi", "h11", "httpcore", "httpx", "idna", "msgspec"),
        *("paliadin", "pyjwt", "standardwebhooks"),
    }
