"""`systemd_unit.py`: what systemd says of the daemon's unit, and what that means to an operator."""

from __future__ import annotations

import json

import pytest

from paliadin_sidecar.operator.systemd_unit import Unit, cause, explain, last_words, parse

NAME = "paliadin-sidecar.service"
RESTART = f"systemctl restart {NAME}"


def unit(*words: str, **properties: str) -> Unit:
    return Unit(NAME, {"LoadState": "loaded", **properties}, words)


def failed(status: int, **properties: str) -> str:
    said = {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": str(status)}
    return explain(unit("its words", **said | properties))


def test_show_is_parsed() -> None:
    """Properties that come once for each item, values with `=`, and what a program must know."""
    found = parse(
        NAME,
        "LoadState=loaded\nActiveState=active\n"
        "EnvironmentFiles=/etc/paliadin/sidecar.env (ignore_errors=no)\n"
        "EnvironmentFiles=/etc/paliadin/tls.env (ignore_errors=yes)\n"
        'Environment=A=1 "B=two words" C=d=e\n'
        "ExecStart={ path=/opt/paliadin/bin/paliadin-sidecar ; argv[]=/opt/x run ; pid=0 }\n",
    )
    assert found is not None
    assert found.properties["ActiveState"] == "active"
    assert found.environment_files == ["/etc/paliadin/sidecar.env", "/etc/paliadin/tls.env"]
    assert found.environment == {"A": "1", "B": "two words", "C": "d=e"}
    assert found.program == "/opt/paliadin/bin/paliadin-sidecar"


@pytest.mark.parametrize("said", ["", "LoadState=not-found\n", "nonsense"])
def test_no_unit(said: str) -> None:
    """Where systemd knows none, nothing is said."""
    assert parse(NAME, said) is None


def test_a_unit_that_says_little() -> None:
    """No property is needed but that it is loaded."""
    assert (unit().program, unit().environment, unit().environment_files) == ("", {}, [])
    assert explain(unit())
    assert unit(Environment='A="').environment == {}


@pytest.mark.parametrize(
    ("properties", "cure"),
    [
        ({"ActiveState": "inactive"}, f"systemctl start {NAME}"),
        (
            {"ActiveState": "inactive", "UnitFileState": "disabled"},
            f"systemctl enable --now {NAME}",
        ),
        ({"LoadState": "masked"}, f"systemctl unmask {NAME} && systemctl start {NAME}"),
        ({"UnitFileState": "masked-runtime"}, f"systemctl unmask {NAME}"),
        ({"LoadState": "bad-setting", "LoadError": "line 3"}, "systemd-analyze verify"),
        ({"ActiveState": "failed", "Result": "resources"}, RESTART),
        ({"ActiveState": "active"}, "PALIADIN_STATE_DIR"),
        ({"ActiveState": "failed", "Result": "watchdog"}, f"journalctl -u {NAME} -n 50"),
        ({"ActiveState": "failed", "Result": "oom-kill"}, "oom-kill"),
    ],
)
def test_each_state_leads_to_a_command(properties: dict[str, str], cure: str) -> None:
    """Stopped, disabled, masked, not to be loaded, or ended by systemd."""
    assert cure in explain(unit(**properties))


@pytest.mark.parametrize(
    ("status", "step", "cure"),
    [
        (203, "EXEC", "chmod -R go+rX /opt/paliadin"),
        (217, "USER", "systemd-sysusers"),
        (216, "GROUP", "systemd-sysusers"),
        (226, "NAMESPACE", "directory"),
        (238, "STATE_DIRECTORY", "no directory"),
        (243, "CREDENTIALS", "LoadCredential"),
        (78, "", "Mend the configuration"),
    ],
)
def test_each_exit_status_has_its_cure(status: int, step: str, cure: str) -> None:
    """What systemd could not do before the program ran, and the configuration's own."""
    said = failed(
        status, ExecStart="{ path=/opt/paliadin/bin/paliadin-sidecar ; }", User="paliadin-sidecar"
    )
    assert f"exit status {status}{'/' if step else ''}{step}." in said
    assert "Its last words: its words" in said
    assert cure in said
    assert said.endswith(RESTART)


def test_a_unit_that_is_started_again_and_again() -> None:
    """`activating` is no start that takes its time."""
    assert "starts it again and again" in failed(203, ActiveState="activating")


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({"ActiveState": "inactive"}, "was stopped, or never started"),
        ({"LoadState": "masked"}, "is masked"),
        ({"LoadState": "bad-setting", "LoadError": "line 3"}, "cannot be loaded (line 3)"),
        ({"ActiveState": "active"}, "is active and holds no outbox"),
        ({"ActiveState": "failed", "Result": "watchdog"}, "has failed with watchdog: its words"),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "78"},
            "has failed with exit status 78: the configuration is wrong",
        ),
        (
            {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": "1"},
            "has failed with exit status 1: its words",
        ),
    ],
)
def test_the_cause_is_one_sentence(properties: dict[str, str], sentence: str) -> None:
    """Without what mends it."""
    assert cause(unit("its words", **properties)) == f"{NAME} {sentence}"


def line(message: str, run: str = "2", **fields: str) -> str:
    entry = {"MESSAGE": message, "PRIORITY": "6", "_SYSTEMD_UNIT": NAME}
    return json.dumps(entry | {"_SYSTEMD_INVOCATION_ID": run} | fields)


def of_systemd(message: str, priority: str, run: str = "2") -> str:
    entry = {"MESSAGE": message, "PRIORITY": priority, "_SYSTEMD_UNIT": "init.scope"}
    return json.dumps(entry | {"INVOCATION_ID": run})


def test_the_last_words_are_the_last_run_s() -> None:
    """Of the program what is no event, or one that is an error; of systemd what it warns of."""
    words = last_words(
        NAME,
        [
            of_systemd("Starting …", "6"),
            line("PALIADIN_QUIET_S='x': of an earlier run", run="1"),
            of_systemd("Failed with result 'exit-code'.", "4", run="1"),
            line('{"timestamp":"…","level":"info","event":"root.armed"}'),
            line('{"timestamp":"…","level":"error","event":"service.crashed"}'),
            line("PALIADIN_WATCH='nowhere': must be"),
            line("PALIADIN_WATCH='nowhere': must be"),
            of_systemd("Main process exited, status=78", "5"),
            of_systemd(f"{NAME}: Failed at step EXEC spawning /opt/x", "3"),
            of_systemd(f"{NAME}: Failed with result 'exit-code'.", "4"),
            of_systemd(f"Failed to start {NAME}.", "3"),
            "cut",
            json.dumps({"MESSAGE": [1, 2], "PRIORITY": "6"}),
            "[]",
        ],
    )
    assert words == (
        '{"timestamp":"…","level":"error","event":"service.crashed"}',
        "PALIADIN_WATCH='nowhere': must be",
        f"{NAME}: Failed at step EXEC spawning /opt/x",
    )
    assert last_words(NAME, []) == ()


def test_a_unit_that_systemd_gave_up() -> None:
    """The reason of the last start is shown, and what makes systemd forget the others."""
    words = last_words(
        NAME,
        [
            of_systemd(f"{NAME}: Control process exited, code=exited, status=1/FAILURE", "5"),
            of_systemd(f"{NAME}: Failed to kill control group /x, ignoring: EIO", "4"),
            of_systemd(f"{NAME}: Start request repeated too quickly.", "4", run=""),
            of_systemd(f"{NAME}: Failed with result 'exit-code'.", "4", run=""),
        ],
    )
    assert words == (f"{NAME}: Control process exited, code=exited, status=1/FAILURE",)
    said = failed(0)
    assert "a command of its ExecStartPre=" in said
    assert said.endswith(f"systemctl reset-failed {NAME}; {RESTART}")
