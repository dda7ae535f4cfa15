"""What all commands have in common, as how a turn is found by what a person has of its id."""

from __future__ import annotations

import errno
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from fcntl import ioctl
from typing import TYPE_CHECKING

import pytest
from support.sidecar import COMMAND, Sidecar
from support.users import NOBODY, root_only

from paliadin_sidecar.operator.session import (
    errors_end_the_command,
    find_turns,
    foreign_names,
    listed,
)
from paliadin_sidecar.outbox import acceptance
from paliadin_sidecar.outbox.database import FILENAME, Outbox
from paliadin_sidecar.outbox.records import TurnKey

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.receiver import Receiver

ONE = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
TWO = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a12"
THREE = "5f3c0000-0000-4000-8000-000000000000"
USER = "5f3cffff-0000-4000-8000-000000000000"


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    with Outbox(tmp_path / FILENAME, create=True) as found:
        yield found


def add(
    outbox: Outbox, turn_id: str, submitted: str | None = None, backend: str = "aichat"
) -> None:
    key = TurnKey(backend, "paliadin", turn_id)
    outbox.transaction([lambda: acceptance.record_turn_event(outbox, "turn.stalled", key, why="x")])
    if submitted:
        outbox.transaction([lambda: acceptance.record_hint(outbox, key, submitted, USER)])


def find_turn(outbox: Outbox, given: str) -> str:
    (found,), missed = find_turns(outbox, [given])
    assert not missed
    return found


@pytest.mark.parametrize(
    "given", [THREE, "5f3c", "5", "5f3c0000-", f"{THREE}.txt", f"/x/{THREE}.txt"]
)
def test_a_beginning_is_enough(outbox: Outbox, given: str) -> None:
    """Also a file's name, as it is copied from a listing."""
    for id_ in (ONE, TWO, THREE):
        add(outbox, id_)
    assert find_turn(outbox, given) == THREE


def test_the_submitted_id_counts_as_well(outbox: Outbox) -> None:
    """One turn by two ids is one turn; two turns of one submitted id are that id."""
    add(outbox, ONE, submitted=TWO)
    assert find_turn(outbox, "0b6f1f8e") in {ONE, TWO}
    assert find_turn(outbox, TWO) == TWO
    add(outbox, THREE, submitted="9999")
    add(outbox, THREE + "-again", submitted="9999")
    assert find_turn(outbox, "99") == "9999"


def test_one_id_of_two_backends_is_one(outbox: Outbox) -> None:
    """Both are shown then."""
    add(outbox, ONE)
    add(outbox, ONE, backend="legacy")
    assert find_turn(outbox, "0b6f") == ONE


def test_a_whole_id_is_meant_though_another_begins_so(outbox: Outbox) -> None:
    """t1 is not t10."""
    add(outbox, "t1")
    add(outbox, "t10")
    assert find_turn(outbox, "t1") == "t1"


def test_several_candidates_are_listed(outbox: Outbox, capsys: pytest.CaptureFixture[str]) -> None:
    """So that the next attempt is right; and no more of them than help."""
    add(outbox, ONE)
    add(outbox, TWO)
    assert find_turns(outbox, ["0b6f1f8e"], may_come=True) == ([], True)
    assert f"several ids, name more of one: {ONE}, {TWO}\n" in capsys.readouterr().err
    for number in range(20):
        add(outbox, f"x{number:02}")
    assert find_turns(outbox, ["x"]) == ([], True)
    assert re.search(r"x00, .* x09, and more\n", capsys.readouterr().err)


@pytest.mark.parametrize("given", ["", "%", "_", "*", "mit blank.txt", "ü", "x" * 65, "a.b.txt"])
def test_what_can_be_no_id_is_told_the_rule(
    outbox: Outbox, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever wonders what became of a file learns why nothing did."""
    add(outbox, ONE)
    assert find_turns(outbox, [given], may_come=True) == ([], True)
    assert "such a file is ignored: a turn's file is <id>" in capsys.readouterr().err


def test_foreign_names() -> None:
    """Not the drafts of those that write properly, nor tokens."""
    ours = ["t1.txt", "t1.jwt", "t1.txt.tmp.7.ab", "t1.tmp", ".t1.txt.swp", "t1.txt~"]
    theirs = ["mit blank.txt", "t1", "t1.TXT", "ä.txt", "a.b.txt", "x" * 65 + ".txt", "notes.md"]
    assert foreign_names(ours + theirs) == sorted(theirs)
    assert listed(["mit blank.txt", "t1", "a\x1b\udcff"]) == "'mit blank.txt', t1, 'a??'"


def test_the_commands_take_beginnings_and_several(host: Sidecar, receiver: Receiver) -> None:
    """`show` and `replay` alike; what is not found does not hide what is."""
    host.start()
    for id_ in (ONE, TWO, THREE):
        host.answer(id_)
        host.wait_event("delivery.delivered", turn_id=id_)
    done = host.typed("show", "5f3c", ONE, "--json")
    assert done.returncode == 0
    assert [turn["turn_id"] for turn in json.loads(done.stdout)] == [THREE, ONE]
    done = host.typed("show", "0b6f1f8e", "5f3c")
    assert done.returncode == 1
    assert f"{ONE}, {TWO}" in done.stderr
    assert THREE in done.stdout
    done = host.typed("replay", "5f3c", THREE, "t9", "0b6f1f8e")
    assert done.returncode == 1
    assert done.stdout == "1 will be sent again\n"
    assert "t9: not known" in done.stderr
    assert f"{ONE}, {TWO}" in done.stderr
    receiver.wait(THREE, 2)
    assert host.typed("show").returncode == 2


def test_a_file_that_is_no_turn_is_found_by_name(host: Sidecar) -> None:
    """By all that lists the roots, and by who asks for it."""
    (host.aichat / "mit blank.txt").write_text("x")
    host.start()
    found = host.typed("status").stdout
    assert f"ignored in {host.aichat}: 'mit blank.txt' (a turn's file is <id>.txt" in found
    notes = json.loads(host.typed("check", "--json").stdout)
    assert [f["subject"] for f in notes if "'mit blank.txt'" in f["message"]] == [
        f"names in {host.aichat}"
    ]
    done = host.typed("show", "mit blank.txt")
    assert (done.returncode, "such a file is ignored" in done.stderr) == (1, True)


def on_a_terminal(host: Sidecar, *args: str, columns: int) -> str:
    """What a command prints on a terminal of this width."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = host.environ | {"TERM": "xterm"}
    with os.fdopen(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen([COMMAND, *args], env=environ, stdout=theirs, stderr=theirs)
        os.close(theirs)
        text = b""
        with suppress(OSError):  # EIO: the other end is closed
            while part := screen.read(4096):
                text += part
    process.wait()
    return text.decode()


def test_ids_are_never_folded(host: Sidecar, receiver: Receiver) -> None:
    """They can be copied at any width, with all that stands in their line."""
    host.start()
    host.answer(ONE)
    host.wait_event("delivery.delivered", turn_id=ONE)
    for columns in (20, 80, 200):
        listed = on_a_terminal(host, "turns", columns=columns).splitlines()
        (line,) = [line for line in listed if ONE in line]
        assert line.startswith(ONE)
        assert "delivered" in line
    assert ONE in on_a_terminal(host, "show", ONE, columns=20)


def test_times_carry_their_zone(host: Sidecar, receiver: Receiver) -> None:
    """A summer's time read in winter is the same moment."""
    host.start()
    host.answer("t1")
    host.wait_event("delivery.delivered", turn_id="t1")
    for zone, offset in (("UTC", "+00:00"), ("<+0530>-5:30", "+05:30")):
        for command in (["turns"], ["show", "t1"]):
            assert offset in host.command(*command, TZ=zone).stdout


def test_what_is_not_shown_is_said(host: Sidecar, receiver: Receiver) -> None:
    """A limit with its number, and an empty list as one."""
    host.start()
    assert host.typed("turns").stdout == "No deliveries\n"
    for id_ in ("t1", "t2", "t3"):
        host.answer(id_)
        host.wait_event("delivery.delivered", turn_id=id_)
    shown = host.typed("turns", "--limit", "2").stdout
    assert shown.splitlines()[-1] == "2 of 3 deliveries; --limit 3 shows all"
    done = host.typed("turns", "--limit", "2", "--json")
    assert len(json.loads(done.stdout)) == 2
    assert done.stderr == "2 of 3 deliveries; --limit 3 shows all\n"
    assert "of 3" not in host.typed("turns").stdout
    assert host.typed("turns", "--state", "dead").stdout == "No deliveries that are dead\n"
    none = host.command("turns", "--since", "2100-01-01", TZ="UTC").stdout
    assert none == "No deliveries accepted since 2100-01-01 00:00:00+00:00\n"


def test_commands_without_an_outbox_say_where_they_looked(host: Sidecar) -> None:
    """Only `run` makes one."""
    for command in (["status"], ["turns"], ["show", "t1"], ["replay", "t1"]):
        done = host.typed(*command)
        assert done.returncode == 1
        assert f"There is no outbox in {host.state}" in done.stderr
    assert not host.state.exists()


def test_the_commands_read_a_file_of_variables(delivered: Sidecar, tmp_path: Path) -> None:
    """--env-file fills in what the environment does not say."""
    path = tmp_path / "sidecar.env"
    path.touch(mode=0o600)  # it holds the secret
    path.write_text(
        "# a comment\n"
        + "".join(f'{k}="{v}"\n' for k, v in delivered.environ.items() if "PALIADIN" in k)
    )
    bare = {"PATH": delivered.environ["PATH"]}

    def command(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args], env=bare, capture_output=True, text=True, check=False
        )

    assert command("status", "--env-file", str(path)).returncode == 0
    assert command("check", "--env-file", str(path)).returncode == 0
    missing = command("status", "--env-file", str(tmp_path / "none"))
    assert missing.returncode == 78
    assert "does not exist" in missing.stderr


@pytest.mark.parametrize("command", ["check", "rehearse", "run"])
def test_a_mistake_in_a_file_is_of_the_unit_that_reads_it(
    host: Sidecar, tmp_path: Path, command: str
) -> None:
    """And not of the one that reads the default file."""
    (tmp_path / "sidecar.env").write_text("PALIADIN_STATE_DIR=/var/lib/paliadin-hugo\n")
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho LoadState=loaded\n")
    (tmp_path / "systemctl").chmod(0o755)
    del host.environ["PALIADIN_STATE_DIR"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    given = f"--env-file={tmp_path}/sidecar.env"
    done = host.command(command, given, PATH=path, PALIADIN_CALLBACK_URL="nowhere")
    assert done.returncode == 78
    assert "paliadin-hugo.service" in done.stderr
    assert "paliadin-sidecar.service" not in done.stderr


def test_the_line_to_type_can_be_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a path in it has a blank."""
    path = "/etc/of this test/sidecar.env"
    monkeypatch.setattr(sys, "argv", ["x", "check", "--env-file", path])
    with pytest.raises(SystemExit), errors_end_the_command(None):
        raise PermissionError(errno.EACCES, "", path)
    assert capsys.readouterr().err.endswith(f"sudo paliadin-sidecar check --env-file '{path}'\n")


@root_only
def test_who_may_not_read_is_told_who_may(host: Sidecar) -> None:
    """The line to type stands in the message."""
    host.start()
    host.stop()
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv[0] = 'paliadin-sidecar'; main()"
    )
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    for command in ("status", "turns"):
        done = subprocess.run(
            [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code, command],
            env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "may not be read by this user" in done.stderr
        assert f"Try: sudo -u root paliadin-sidecar {command}" in done.stderr
