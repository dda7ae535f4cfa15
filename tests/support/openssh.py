"""OpenSSH's own server with its own defaults, where there is one."""

from __future__ import annotations

import os
import pwd
import shlex
import shutil
import socket
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncssh
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {home}/host
AuthorizedKeysFile {home}/authorized
ForceCommand {home}/shim
PidFile none
# A test's directory is below one that others may write to.
StrictModes no
"""
_SHIM = r"""#!/bin/sh
echo "$SSH_ORIGINAL_COMMAND" >> {home}/commands
case $SSH_ORIGINAL_COMMAND in
    health*) echo ok ;;
    *) printf 'Ja.\n\n[paliadin-meta]\n{{"used_tools": [], "rows_seen": 0, "classifier_tag": ""}}\n'
esac
"""


@contextmanager
def openssh_host(home: Path) -> Iterator[dict[str, str]]:
    """Yields the client's environment; `home` is a directory, where `commands` says what it ran."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    if sshd is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no sshd here")
    keys = {name: asyncssh.generate_private_key("ssh-ed25519") for name in ("host", "user")}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, contents in {
        "host": keys["host"].export_private_key().decode(),
        "authorized": keys["user"].export_public_key().decode(),
        "config": _CONFIG.format(home=home, port=port),
        "shim": _SHIM.format(home=home),
    }.items():
        (home / name).touch(0o700)
        (home / name).write_text(contents)
    command = [sshd, "-D", "-e", "-f", str(home / "config")]
    if os.geteuid() == 0:
        # It separates its privileges in a directory that the system's own service makes.
        run = f"mount -t tmpfs tmpfs /run && mkdir /run/sshd && exec {shlex.join(command)}"
        command = ["unshare", "--mount", "sh", "-c", run]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("Server listening"):
                break
            if line.startswith(("unshare:", "mount:")):
                pytest.skip(f"this root may not mount: {line}")
        else:
            pytest.fail(f"sshd ended: {said}")
        yield {
            "PALIADIN_REMOTE_HOST": "127.0.0.1",
            "PALIADIN_REMOTE_PORT": str(port),
            "PALIADIN_REMOTE_USER": pwd.getpwuid(os.geteuid()).pw_name,
            "PALIADIN_SSH_PRIVATE_KEY": keys["user"].export_private_key().decode(),
            "PALIADIN_KNOWN_HOSTS": f"[127.0.0.1]:{port} "
            + keys["host"].export_public_key().decode(),
        }
    finally:
        process.terminate()
        process.communicate()
