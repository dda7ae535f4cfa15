"""An SSH server that runs one command whatever it is asked, as `command=` in authorized_keys.

What it was asked is SSH_ORIGINAL_COMMAND; the rest of the environment is this process's own.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE
from functools import partial

import asyncssh


def main() -> None:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host-key", required=True, metavar="FILE")
    parser.add_argument("--authorized-keys", required=True, metavar="FILE")
    parser.add_argument("--port", type=int, default=0, help="default: any; it is printed")
    parser.add_argument("command", help="for the shell")
    asyncio.run(_serve(parser.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    server = await asyncssh.listen(
        "127.0.0.1",
        options.port,
        server_host_keys=[options.host_key],
        authorized_client_keys=options.authorized_keys,
        process_factory=partial(_run, options.command),
        encoding=None,
    )
    print(f"127.0.0.1:{server.get_port()}", flush=True)
    await server.wait_closed()


async def _run(command: str, process: asyncssh.SSHServerProcess[bytes]) -> None:
    try:
        child = await asyncio.create_subprocess_shell(
            command,
            env={**os.environ, "SSH_ORIGINAL_COMMAND": process.command or ""},
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=PIPE,
        )
    except OSError as exc:  # too long for an environment
        process.stderr.write(f"{exc.strerror}\n".encode())
        process.exit(1)
        return
    out, err = await child.communicate()
    process.stdout.write(out)
    process.stderr.write(err)
    code = child.returncode or 0
    process.exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
