"""`hosting.py`: the commands fit the host that they are typed on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from paliadin_sidecar.errors import Damaged, Full, Newer, Older
from paliadin_sidecar.operator.hosting import Hosting, in_container, is_unit, unit_name

STATE = Path("/var/lib/paliadin-hugo")
UNIT, IMAGE = Hosting("paliadin-hugo.service"), Hosting(container=True)
BY_FILE = Hosting("paliadin-hugo.service", env_file=Path("/etc/paliadin hugo/sidecar.env"))


def test_restart() -> None:
    """By systemd, by compose, or by hand."""
    assert UNIT.restart == "systemctl restart paliadin-hugo.service"
    assert IMAGE.restart == "docker compose restart sidecar"
    assert "systemctl restart paliadin-sidecar" in Hosting().restart


def test_commands_name_the_instance_and_the_container() -> None:
    """What is no command of ours stays as it is."""
    said = "paliadin-sidecar check --ping; systemctl restart paliadin-sidecar"
    assert Hosting().commands_of_this_host(said) == UNIT.commands_of_this_host(said) == said
    assert IMAGE.commands_of_this_host(said) == f"docker compose exec sidecar {said}"
    assert BY_FILE.commands_of_this_host(said) == (
        "paliadin-sidecar check --env-file '/etc/paliadin hugo/sidecar.env' --ping; "
        "systemctl restart paliadin-sidecar"
    )


def test_a_damaged_outbox_is_moved_aside_by_what_is_advised(tmp_path: Path) -> None:
    """The very command, twice: the second one does not take the place of the first."""
    state, log = tmp_path / "the state", tmp_path / "log"
    state.mkdir()
    for program in ("systemctl", "docker"):
        (tmp_path / program).write_text(f'#!/bin/sh\necho "$0 $*" >>"{log}"\n')
        (tmp_path / program).chmod(0o755)
    for n in range(2):
        for name in ("outbox.db", "outbox.db-wal"):
            (state / name).write_text(f"damaged {n}")
        advice = UNIT.remedy(Damaged(state / "outbox.db", "is damaged"))
        command = advice.rpartition(": ")[2]
        path = f"{tmp_path}:{os.environ['PATH']}"
        subprocess.run(["sh", "-ec", command], check=True, env={"PATH": path})
        assert not list(state.glob("outbox.db*"))
    kept = [path.read_text() for path in sorted(state.glob("aside.*/outbox.db"))]
    assert sorted(kept) == ["damaged 0", "damaged 1"]
    said = log.read_text().replace(f"{tmp_path}/", "").splitlines()
    assert said == [f"systemctl {verb} paliadin-hugo.service" for verb in ("stop", "start")] * 2


def test_each_host_has_its_own_way_to_begin_anew() -> None:
    """As root on a host with a unit, `run` is not what helps; without one it is."""
    damaged = Damaged(STATE / "outbox.db", "is damaged")
    assert Hosting().remedy(damaged).endswith(": paliadin-sidecar run --quarantine")
    assert "run --quarantine" not in UNIT.remedy(damaged)
    assert "docker compose run --rm --entrypoint sh sidecar -c" in IMAGE.remedy(damaged)


def test_nobody_is_told_to_make_a_second_secret() -> None:
    """Beside a unit, whose secret systemd hands over; where there is none, it is what helps."""
    problems = ["PALIADIN_CALLBACK_SECRET is not set: must be x; make one with echo", "B='': wrong"]
    assert Hosting().setting_problems(problems) == problems
    secret, other, restart = UNIT.setting_problems(problems)
    assert "make one" not in secret
    assert "LoadCredential=" in secret
    assert other == problems[1]
    assert restart.endswith(UNIT.restart)


def test_other_errors_keep_their_cure() -> None:
    """Only what depends on the host is added."""
    assert UNIT.remedy(Older(STATE / "outbox.db", "old")).endswith(UNIT.restart)
    for exc in (Full(STATE, "full"), Newer(STATE, "new")):
        assert UNIT.remedy(exc) == exc.remedy


def test_who_runs_this() -> None:
    """A unit has the state directory's name; a test is neither a unit nor the image."""
    assert unit_name(STATE) == "paliadin-hugo.service"
    assert not is_unit()
    assert not in_container()
