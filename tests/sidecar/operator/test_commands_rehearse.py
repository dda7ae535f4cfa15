"""`rehearse` as it is typed."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import TYPE_CHECKING

import pytest
from support.example_receivers import command, running, stored
from support.keeping import Keeping, instead
from support.operate import block
from support.receiver import Receiver, Reply
from support.sidecar import COMMAND

from paliadin_sidecar.operator.commands import rehearse
from paliadin_sidecar.operator.rehearsal import play

if TYPE_CHECKING:
    from pathlib import Path

    from support.sidecar import Sidecar


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where sizes are not what is tried."""
    monkeypatch.setattr(play, "_LARGE", "")
    monkeypatch.setattr(play, "_TOO_LARGE_BYTES", 4096)


@pytest.mark.usefixtures("smaller")
def test_a_receiver_that_keeps_the_protocol(host: Sidecar) -> None:
    """It signs with the daemon's secret, needs no daemon, and leaves no outbox."""
    with Receiver(Keeping(host.secret, max_body=4096)) as receiver:
        done = host.typed("rehearse", PALIADIN_CALLBACK_URL=receiver.url)
    first, head, *rows = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert first == "keeps all that was played"
    assert head.split() == ["rule", "where", "it", "stands", "what", "came", "of", "it"]
    assert {row.split()[0] for row in rows} == {"keeps"}
    assert all("docs/protocol.md#" in row for row in rows)
    assert not host.state.exists()


@pytest.mark.usefixtures("smaller")
def test_a_receiver_that_breaks_a_rule(host: Sidecar) -> None:
    """The first line names it, for a person, and each has its level for a program."""
    fault = instead(lambda _, __, right: right.status == 400, Reply(500))
    with Receiver(fault(Keeping(host.secret, max_body=4096))) as receiver:
        done = host.typed("rehearse", "--url", receiver.url)
        shown = host.typed("rehearse", "--url", receiver.url, "--json")
    assert (done.returncode, shown.returncode) == (1, 1)
    assert done.stdout.startswith("BREAKS: no JSON, or not its type's shape\n")
    (broken,) = (each for each in json.loads(shown.stdout) if each["level"] == "breaks")
    assert broken["rule"] == "no JSON, or not its type's shape"
    assert broken["place"] == "docs/protocol.md#rule-malformed"
    assert host.secret not in done.stdout + shown.stdout


@pytest.mark.parametrize("url", ["https://paliad.example.org/callback", "https://192.0.2.1/"])
def test_another_host_is_asked_for(
    host: Sidecar, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is sent before somebody says that it may be."""
    monkeypatch.setattr(play, "rehearse", pytest.fail)
    done = host.typed("rehearse", "--url", url)
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{url} is not on this host" in done.stderr
    assert done.stderr.endswith("Nothing was sent: --yes sends without asking.\n")


@pytest.mark.parametrize(("given", "code"), [("y\n", 0), ("n\n", 2), ("\n", 2)])
def test_what_is_answered_counts(
    host: Sidecar, given: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who says nothing has not agreed."""
    sent = []

    async def played(settings: object) -> list[object]:
        sent.append(settings)
        return []

    from click.testing import CliRunner  # noqa: PLC0415 - for input, which `typed` has none of

    monkeypatch.setattr(play, "rehearse", played)
    for name, value in host.environ.items():
        monkeypatch.setenv(name, value)
    args = ["--url", "https://paliad.example.org/"]
    done = CliRunner().invoke(rehearse.rehearse, args, input=given)
    assert (done.exit_code, len(sent)) == (code, code == 0)
    sent.clear()
    assert CliRunner().invoke(rehearse.rehearse, [*args, "--yes"]).exit_code == 0
    assert len(sent) == 1


def test_a_url_that_is_none(host: Sidecar) -> None:
    """It follows the rules of PALIADIN_CALLBACK_URL, and nothing is sent."""
    done = host.typed("rehearse", "--url", "http://paliad.example.org/", "--yes")
    assert done.returncode == 78
    assert done.stderr.startswith("PALIADIN_CALLBACK_URL='http://paliad.example.org/': must be")


def test_nobody_answers(host: Sidecar) -> None:
    """That is distinguished from a receiver that keeps all."""
    with Receiver() as receiver:
        url = receiver.url
    done = host.typed("rehearse", "--url", url)
    assert done.returncode == 1
    assert done.stdout.startswith("BREAKS: a ping; a turn that nobody has\n")


@pytest.mark.slow
def test_the_commands_of_the_documents(host: Sidecar, tmp_path: Path) -> None:
    """As they stand there, against the example receiver, which keeps all of it at its full size."""
    store = tmp_path / "store"
    (_, secret), *_ = (line.split("=", 1) for line in block("rehearse", "protocol.md").splitlines())
    with running(command("python", tmp_path), store, secret) as receiver:
        for document in ("protocol.md", "operate.md"):
            text = block("rehearse", document)
            text = text.replace("http://127.0.0.1:8080/callbacks/turns", receiver.url)
            text = text.replace("paliadin-sidecar", shlex.quote(COMMAND))
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                env=host.environ
                | {"PALIADIN_CALLBACK_URL": receiver.url, "PALIADIN_CALLBACK_SECRET": secret},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), done.stdout
            assert done.stdout.startswith("keeps all that was played\n")
    found = stored(store).values()
    assert {each.persona for each in found} == {"rehearsal"}
    assert max(len(each.response or "") for each in found) == 4 * 1024 * 1024
    log = receiver.output.read_text()
    assert "_rehearsal_" in log
    assert "This is a rehearsal" not in log
