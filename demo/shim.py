"""The legacy verbs, for a key's `command=` in `authorized_keys`.

    health SESSION                      prints ok
    run-turn SESSION TURN_ID BASE64     types the message, prints the whole turn file
    reset SESSION                       ends the session

The verb comes in SSH_ORIGINAL_COMMAND; PALIADIN_REMOTE_CWD, PALIADIN_RESPONSE_DIR
(/tmp/paliadin) and PALIADIN_TIMEOUT_S (120) are read. Exit codes: 1 tmux or the agent failed,
2 bad request, 3 the working directory is missing, 124 timed out.

    command="cd REPOSITORY && PALIADIN_REMOTE_CWD=… exec python -m demo.shim --tmux SOCKET"
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shlex
import sys
from pathlib import Path

import anyio

from demo.panes import PaneError, Panes, agent, envelope

_SESSION = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_WINDOW = "agent"


class _Exit(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def main() -> int:
    """Do what SSH_ORIGINAL_COMMAND says; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tmux", type=Path, required=True, help="socket of the tmux server")
    parser.add_argument("--agent", type=shlex.split, help="command; default: the demo agent")
    parser.add_argument("--process", help="its name in the foreground; default: the command's")
    parser.add_argument(
        "--prompt", default="", help="what its screen matches while its prompt is there and empty"
    )
    parser.add_argument("--delete", action="store_true", help="the answer, once it was read")
    options = parser.parse_args()
    os.umask(0o077)
    try:
        sys.stdout.buffer.write(anyio.run(_obey, options))
    except _Exit as exc:
        print(exc, file=sys.stderr)
        return exc.code
    except TimeoutError:
        print("timed out", file=sys.stderr)
        return 124
    except (PaneError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


async def _obey(options: argparse.Namespace) -> bytes:
    panes = Panes(options.tmux)
    match os.environ.get("SSH_ORIGINAL_COMMAND", "").split():
        case ["health", session]:
            _check(session)
            _directories()
            return b"ok\n"
        case ["reset", session]:
            _check(session)
            await panes.close(session)
            return b""
        case ["run-turn", session, turn_id, encoded]:
            _check(session)
            if not _UUID.fullmatch(turn_id):
                raise _Exit(2, "the turn id is no UUID")
            message = _decoded(encoded)
            cwd, answers = _directories()
            path = answers / f"{turn_id}.txt"
            with anyio.fail_after(float(os.environ.get("PALIADIN_TIMEOUT_S", "120"))):
                content, _ = await panes.run_turn(
                    session,
                    _WINDOW,
                    agent(options.agent, options.process, options.prompt, answers, cwd),
                    line=envelope(turn_id, message),
                    path=path,
                )
            if options.delete:
                path.unlink(missing_ok=True)
            return content
        case _:
            raise _Exit(2, "not: health SESSION, run-turn SESSION TURN_ID BASE64, reset SESSION")


def _check(session: str) -> None:
    if not _SESSION.fullmatch(session):
        raise _Exit(2, "the session is not 1 to 64 of A-Z a-z 0-9 _ . -")


def _decoded(encoded: str) -> str:
    try:
        message = base64.b64decode(encoded, validate=True).decode()
    except ValueError:
        raise _Exit(2, "the message is not base64 of UTF-8") from None
    if not message.strip():
        raise _Exit(2, "the message is empty")
    return message


def _directories() -> tuple[str, Path]:
    cwd = os.environ.get("PALIADIN_REMOTE_CWD", "")
    if not Path(cwd or "/nowhere").is_dir():
        raise _Exit(3, f"PALIADIN_REMOTE_CWD is no directory: {cwd!r}")
    answers = Path(os.environ.get("PALIADIN_RESPONSE_DIR", "/tmp/paliadin"))
    answers.mkdir(mode=0o700, parents=True, exist_ok=True)
    return cwd, answers


if __name__ == "__main__":
    sys.exit(main())
