"""The full circle: users ask through the client, and are answered by response or by push."""

from __future__ import annotations

import signal
import uuid
from typing import TYPE_CHECKING

from demo.verdict import Asked
from paliadin_client import User

if TYPE_CHECKING:
    from demo.__main__ import Demo

__all__ = ["KILLED", "OUTLIVED", "OVER_AICHAT", "OVER_LEGACY", "PLAN", "play"]

OVER_AICHAT, OVER_LEGACY = "over aichat", "over legacy"
KILLED, OUTLIVED = "aichat killed", "submit outlived"
_USERS = {
    name: User(str(uuid.uuid4()), email=f"{name.lower()}@example.org") for name in ("Anna", "Bao")
}
_QUESTIONS = (
    "Welche Fristen laufen ab?",
    'Wer vertritt "Müller & Söhne"; seit wann?',
    "明天有哪些截止日期?",
)
#: How many turns are asked in each row.
PLAN = {OVER_AICHAT: 6, OVER_LEGACY: 6, KILLED: 3, OUTLIVED: 2}
#: For a first turn, which starts its agent; and for turns that it shall not see answered.
_PATIENT_S, _IMPATIENT_S = 60.0, 4.0


async def play(demo: Demo) -> None:
    """Go through the circle's steps."""
    stage = demo.stage
    demo.title("Two users ask through the client, over aichat's HTTP and legacy's SSH")
    stage.start_aichat(_PATIENT_S)
    stage.start_sshd()
    for name in ("aichat", "sshd"):
        await demo.until(f"the {name}", lambda name=name: stage.is_listening(name))
    for name in _USERS:
        for row, backend in ((OVER_AICHAT, "aichat"), (OVER_LEGACY, "legacy")):
            demo.ask(*(_asked(demo, row, backend, name, question) for question in _QUESTIONS))
    await demo.until_answered()

    demo.title("aichat is killed in the middle of a turn, and comes back")
    panes = _panes(demo)
    demo.ask(_asked(demo, KILLED, "aichat", "Anna", "Bitte (think 3)!", late=True))
    await demo.until("the agent", lambda: "for 3 s" in _screen(demo, "anna"))
    await stage.stop("aichat", signal.SIGKILL)
    demo.note("aichat is dead; the agent in its pane is not")
    stage.start_aichat(_IMPATIENT_S)
    await demo.until("aichat", lambda: stage.is_listening("aichat"))
    demo.note("aichat is started again")
    await demo.until_answered()
    for name in _USERS:
        demo.ask(_asked(demo, KILLED, "aichat", name, "Und nun?"))
    await demo.until_answered()
    if _panes(demo) != panes:
        demo.wrong.append("aichat did not find its windows again")

    demo.title(f"Turns outlive their submit: aichat gives up after {_IMPATIENT_S:g} s")
    for name in _USERS:
        demo.ask(_asked(demo, OUTLIVED, "aichat", name, "Gründlich, bitte (think 5)!", late=True))
    await demo.until_answered()


def _asked(
    demo: Demo, row: str, backend: str, name: str, question: str, *, late: bool = False
) -> Asked:
    return Asked(
        id=str(uuid.uuid4()),
        row=row,
        backend=backend,
        title=f"{name}: {question}",
        root=demo.stage.roots[backend],
        user=_USERS[name],
        question=f"{name}: {question}",
        late=late,
    )


def _panes(demo: Demo) -> str:
    return demo.stage.tmux(
        "list-panes", "-a", "-F", "#{session_name}:#{window_name} #{pane_id} #{pane_pid}"
    )


def _screen(demo: Demo, window: str) -> str:
    return demo.stage.tmux("capture-pane", "-p", "-t", f"=aichat-paliadin:={window}")
