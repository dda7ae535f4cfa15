"""The full circle: users ask through the client, and are answered by response or by push."""

from __future__ import annotations

import signal
import uuid
from functools import partial
from typing import TYPE_CHECKING

from demo.verdict import Asked
from paliadin_client import User

if TYPE_CHECKING:
    from demo.__main__ import Demo

__all__ = ["ROWS", "play"]

ROWS = _OVER_AICHAT, _OVER_LEGACY, _KILLED, _OUTLIVED = (
    "over aichat",
    "over legacy",
    "aichat killed",
    "submit outlived",
)
#: What stands over the columns of these turns.
_ASKED = ("who asks what", "by")
_USERS = {
    name: User(str(uuid.uuid4()), email=f"{name.lower()}@example.org") for name in ("Anna", "Bao")
}
_QUESTIONS = "Welche Fristen laufen ab?", "Wer ist 'Müller & Söhne'; seit wann?", "明天有什么?"
#: For first turns, which start their agent; and for turns that it shall not see answered.
_PATIENT_S, _IMPATIENT_S = 60.0, 4.0


async def play(demo: Demo) -> None:
    """Go through the circle's steps."""
    stage, ask = demo.stage, partial(_asked, demo)
    demo.title("Two users ask through the client, over aichat's HTTP and legacy's SSH", *_ASKED)
    stage.start_aichat(_PATIENT_S)
    stage.start_sshd()
    await demo.until("aichat and sshd", lambda: stage.are_listening("aichat", "sshd"))
    for name in _USERS:
        for row, backend in ((_OVER_AICHAT, "aichat"), (_OVER_LEGACY, "legacy")):
            demo.ask(backend, *(ask(row, backend, name, question) for question in _QUESTIONS))
    await demo.until_answered()

    demo.title("aichat is killed in the middle of a turn, and comes back", *_ASKED)
    panes = _panes(demo)
    demo.ask("aichat", ask(_KILLED, "aichat", "Anna", "Bitte (think 3)!", late=True))
    screen = ("capture-pane", "-p", "-t", "=aichat-paliadin:=anna")
    await demo.until("the agent", lambda: "thinking for 3 s" in stage.tmux(*screen))
    await demo.stop("aichat", signal.SIGKILL)
    demo.note("aichat is dead; the agent in its pane is not")
    stage.start_aichat(_IMPATIENT_S)
    await demo.until("aichat", lambda: stage.are_listening("aichat"))
    demo.note("aichat is started again")
    await demo.until_answered()
    for name in _USERS:
        demo.ask("aichat", ask(_KILLED, "aichat", name, "Und nun?"))
    await demo.until_answered()
    if _panes(demo) != panes:
        demo.wrong.append("aichat did not find its windows again")

    demo.title(f"Turns outlive their submit: aichat gives up after {_IMPATIENT_S:g} s", *_ASKED)
    for name in _USERS:
        demo.ask("aichat", ask(_OUTLIVED, "aichat", name, "Gründlich (think 5)!", late=True))
    await demo.until_answered()


def _asked(
    demo: Demo, row: str, backend: str, name: str, question: str, *, late: bool = False
) -> Asked:
    return Asked(
        id=str(uuid.uuid4()),
        row=row,
        title=f"{name}: {question}",
        root=demo.stage.roots[backend],
        receiver=demo.stage.receiver,
        user=_USERS[name],
        question=f"{name}: {question}",
        late=late,
    )


def _panes(demo: Demo) -> str:
    return demo.stage.tmux("list-panes", "-a", "-F", "#{session_name}:#{window_name} #{pane_pid}")
