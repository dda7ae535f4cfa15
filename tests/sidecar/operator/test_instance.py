"""The daemon as commands see it, the environment that it has, and the commands for this host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from support.checking import findings, mend
from support.receiver import Receiver, verifying
from support.sidecar import COMMAND, Sidecar, new_secret
from support.users import NOBODY, root_only

from paliadin_sidecar.errors import Damaged, Full, Newer, Older
from paliadin_sidecar.host.storage import user_name
from paliadin_sidecar.operator.instance import Hosting, inspect, is_unit, unit_name

STATE = Path("/var/lib/paliadin-hugo")
UNIT, IMAGE = Hosting("paliadin-hugo.service"), Hosting(container=True)
BY_FILE = Hosting("paliadin-hugo.service", env_file=Path("/etc/paliadin hugo/sidecar.env"))


@root_only
def test_a_credential_that_may_not_be_read(host: Sidecar) -> None:
    """Exit 78 with the command, as JSON too."""
    secret = host.base / "secret"
    secret.write_text(host.secret)
    os.chown(secret, NOBODY, NOBODY)
    secret.chmod(0o400)
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    drop = "-dac_read_search,-dac_override"
    before = ["setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"]
    found = findings(host, *before, PALIADIN_CALLBACK_SECRET_FILE=str(secret))
    level, message = found["configuration"]
    assert level == "wrong"
    assert message.endswith(f"or nothing can be signed: chown 0 {secret}")
    mend(message)
    found = findings(host, *before, PALIADIN_CALLBACK_SECRET_FILE=str(secret))
    assert found["callback secret"][0] == "ok"


@root_only
def test_the_service_s_credential_is_found(host: Sidecar) -> None:
    """Who may read what systemd gave the unit needs not say where it is."""
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    folder = "/run/credentials/state.service"
    shell = (
        f"mount -t tmpfs none /run; mkdir -p {folder}; "
        f"echo {host.secret} > {folder}/callback-secret"
    )
    assert findings(host, "unshare", "-m", shell=shell)["callback secret"][0] == "ok"
    assert findings(host)["configuration"][0] == "wrong"


def test_each_instance_has_its_own_secret(tmp_path: Path) -> None:
    """It is beside the instance's environment file: a ping is never signed with another's."""
    with Receiver() as receiver, Receiver() as hugo_s:
        for name, end in (("paliadin", receiver), ("hugo", hugo_s)):
            folder = tmp_path / name
            folder.mkdir()
            secret = new_secret()
            end.behaviour = verifying(secret)
            (folder / "callback-secret").touch(mode=0o600)
            (folder / "callback-secret").write_text(f"{secret}\n")
            (folder / "sidecar.env").write_text(
                f"PALIADIN_CALLBACK_URL={end.url}\nPALIADIN_STATE_DIR={folder}/state\n"
                f"PALIADIN_WATCH=aichat/{name}={folder}/answers\n"
            )
            command = [COMMAND, "check", "--ping", "--env-file", f"{folder}/sidecar.env"]
            done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr


@root_only
def test_a_secret_that_this_user_may_not_read(host: Sidecar) -> None:
    """While the service is down root alone may read it: that is said, not that none is set."""
    del host.environ["PALIADIN_CALLBACK_SECRET"]
    (host.base / "sidecar.env").touch()
    (host.base / "callback-secret").touch(mode=0o600)
    os.chown(host.base / "callback-secret", NOBODY, NOBODY)
    drop = "-dac_read_search,-dac_override"
    done = subprocess.run(
        [
            *("setpriv", f"--bounding-set={drop}", f"--inh-caps={drop}"),
            *(COMMAND, "check", "--env-file", f"{host.base}/sidecar.env"),
        ],
        env=host.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        f"{host.base}/callback-secret may not be read by this user. "
        f"Try: sudo paliadin-sidecar check --env-file {host.base}/sidecar.env\n"
    )


@root_only
def test_an_ordinary_user_is_told_the_command_at_once(host: Sidecar) -> None:
    """Not what looks wrong to them, nor to become the daemon's user, who sees less than root."""
    host.state.mkdir(mode=0o700)
    host.base.chmod(0o755)
    ordinary = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    code = (
        "import sys; from paliadin_sidecar.operator.cli import main;"
        "sys.argv = ['paliadin-sidecar', 'check', '--ping']; main()"
    )
    done = subprocess.run(
        [*ordinary, COMMAND.replace("paliadin-sidecar", "python"), "-c", code],
        env=host.environ | {"COVERAGE_PROCESS_START": "", "COVERAGE_PROCESS_CONFIG": ""},
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"{host.state} may not be read by this user. Try: sudo paliadin-sidecar check --ping\n"
    )


@root_only
def test_the_owner_is_not_named(host: Sidecar) -> None:
    """Nobody is advised to give answers to root, nor where root is named by mistake."""
    os.chown(host.aichat, NOBODY, NOBODY)
    level, message = findings(host)["root aichat/paliadin"]
    name = user_name(NOBODY)
    assert level == "wrong"
    assert "not to root (PALIADIN_OWNER), which is not set" in message
    assert f": PALIADIN_OWNER={name}, if that is the agent's user, and restart" in message
    assert "chown" not in message
    assert findings(host, PALIADIN_OWNER=name)["root aichat/paliadin"][0] == "ok"
    message = findings(host, PALIADIN_OWNER="root")["root aichat/paliadin"][1]
    assert f"(PALIADIN_OWNER): PALIADIN_OWNER={name}, if that is" in message


def test_what_was_corrected_without_a_restart_is_named(host: Sidecar) -> None:
    """The variable, and never its value: a URL, a secret, and nothing where nothing changed."""
    host.start()
    assert '"daemon",\n    "message": "runs' in host.typed("check", "--json").stdout
    for name, value in {
        "PALIADIN_CALLBACK_URL": "http://127.0.0.1:9/another",
        "PALIADIN_CALLBACK_SECRET": f"{new_secret()} {host.secret}",
        "PALIADIN_QUIET_S": "9",
    }.items():
        done = host.typed("check", **{name: value})
        assert done.returncode == 1
        assert f"still runs with another value of {name}: restart it" in done.stdout
        assert "whsec_" not in done.stdout


def test_check_has_what_the_unit_s_drop_ins_say(host: Sidecar, tmp_path: Path) -> None:
    """Else each drop-in would look like a correction without a restart."""
    files = [tmp_path / "sidecar.env", tmp_path / "drop-in.env"]
    files[0].write_text("PALIADIN_QUIET_S=4\nPALIADIN_RESCAN_S=3\n")
    files[1].write_text("PALIADIN_RESCAN_S=5\n")
    listed = "".join(f"EnvironmentFiles={path} (ignore_errors=no)\\n" for path in files)
    (tmp_path / "systemctl").write_text(
        "#!/bin/sh\nprintf 'LoadState=loaded\\nActiveState=active\\n"
        f"Environment=PALIADIN_EVENTS=inotify PALIADIN_QUIET_S=9\\n{listed}'\n"
    )
    (tmp_path / "systemctl").chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    for name in ("PALIADIN_QUIET_S", "PALIADIN_RESCAN_S"):
        del host.environ[name]
    daemon_s = {"QUIET_S": "4", "RESCAN_S": "5", "EVENTS": "inotify"}
    before = dict(host.environ)
    host.environ |= {f"PALIADIN_{name}": value for name, value in daemon_s.items()}
    host.start()
    host.environ = before
    done = host.typed("check", f"--env-file={files[0]}", PATH=path)
    assert "still runs" not in done.stdout
    files[1].write_text("PALIADIN_RESCAN_S=6\n")
    done = host.typed("check", f"--env-file={files[0]}", PATH=path)
    assert "another value of PALIADIN_RESCAN_S: systemctl restart state.service" in done.stdout


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
    exported = IMAGE.commands_of_this_host("paliadin-sidecar export has all of them.")
    assert exported == "docker compose exec sidecar paliadin-sidecar export has all of them."


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
    assert not inspect(STATE).hosting.container
