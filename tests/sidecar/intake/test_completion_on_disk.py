"""What the shell suggests after TAB, by the shells themselves where they are there."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from support.needs import need
from support.sidecar import COMMAND

PATH = f"{Path(COMMAND).parent}:{os.environ['PATH']}"


def complete(shell: str, words: str, count: int) -> list[str]:
    """What click offers a shell for the word at the end."""
    done = subprocess.run(
        [COMMAND],
        env=os.environ
        | {
            "_PALIADIN_SIDECAR_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(count) if shell != "fish" else words.rsplit(" ", 1)[-1],
        },
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.split()


def source(shell: str) -> str:
    """The script that a shell reads, made as docs/operate.md says."""
    line = f"_PALIADIN_SIDECAR_COMPLETE={shell}_source paliadin-sidecar"
    done = subprocess.run(
        ["sh", "-c", line], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script_and_its_words(shell: str) -> None:
    """Commands and choices are offered in each shell's own form."""
    assert "paliadin-sidecar" in source(shell)
    assert "status" in " ".join(complete(shell, "paliadin-sidecar sta", 1))
    assert "dead" in " ".join(complete(shell, "paliadin-sidecar turns --state de", 3))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_reads_its_script(shell: str, tmp_path: Path) -> None:
    """The real shell takes it without a word, and knows how to complete the command."""
    need(shell)
    script = tmp_path / "completion"
    script.write_text(source(shell))
    ask = {
        "bash": f". {script}; complete -p paliadin-sidecar",
        "zsh": f'autoload -U compinit; compinit -D; . {script}; print "$_comps[paliadin-sidecar]"',
        "fish": f"source {script}; complete -C 'paliadin-sidecar sta'",
    }[shell]
    done = subprocess.run(
        [shell, "-c", ask], env={"PATH": PATH, "HOME": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    expected = {"bash": "-F _paliadin_sidecar_completion", "fish": "status"}
    assert expected.get(shell, "_paliadin_sidecar_completion") in done.stdout
    assert done.stderr == ""


def test_bash_completes_a_line(tmp_path: Path) -> None:
    """Its function, called as bash does on TAB, finds the command."""
    script = tmp_path / "completion"
    script.write_text(source("bash"))
    ask = (
        f". {script}; COMP_WORDS=(paliadin-sidecar sta); COMP_CWORD=1; "
        "_paliadin_sidecar_completion paliadin-sidecar; echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(
        ["bash", "-c", ask], env={"PATH": PATH}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "status\n"
