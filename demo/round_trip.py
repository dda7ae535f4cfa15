"""The steps in which users ask through the client, and are answered by a response or a push."""

from __future__ import annotations

import signal
import uuid
from functools import partial
from typing import TYPE_CHECKING

from demo.turns import Asked
from paliadin_client import User

if TYPE_CHECKING:
    from demo.session import Session


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
#: aichat's deadlines, in seconds: for first turns, which start their agent, and for turns that it
#: is to give up before they are answered.
_PATIENT_S, _IMPATIENT_S = 60.0, 4.0


async def play(session: Session) -> None:
    """Go through these steps."""
    host, ask = session.host, partial(_asked, session)
    session.title("Two users ask through the client, over aichat's HTTP and legacy's SSH", *_ASKED)
    host.start_aichat(_PATIENT_S)
    host.start_sshd()
    await session.until("aichat and sshd", lambda: host.are_listening("aichat", "sshd"))
    for name in _USERS:
        for row, backend in ((_OVER_AICHAT, "aichat"), (_OVER_LEGACY, "legacy")):
            session.ask(backend, *(ask(row, backend, name, question) for question in _QUESTIONS))
    await session.until_answered()

    session.title("aichat is killed in the middle of a turn, and comes back", *_ASKED)
    panes = _panes(session)
    session.ask("aichat", ask(_KILLED, "aichat", "Anna", "Bitte (think 3)!", late=True))
    screen = ("capture-pane", "-p", "-t", "=aichat-paliadin:=anna")
    await session.until("the agent", lambda: "thinking for 3 s" in host.tmux(*screen))
    await session.stop("aichat", signal.SIGKILL)
    session.note("aichat is dead; the agent in its pane is not")
    host.start_aichat(_IMPATIENT_S)
    await session.until("aichat", lambda: host.are_listening("aichat"))
    session.note("aichat is started again")
    await session.until_answered()
    for name in _USERS:
        session.ask("aichat", ask(_KILLED, "aichat", name, "Und nun?"))
    await session.until_answered()
    if _panes(session) != panes:
        session.wrong.append("aichat did not find its windows again")

    session.title(f"Turns outlive their submit: aichat gives up after {_IMPATIENT_S:g} s", *_ASKED)
    for name in _USERS:
        session.ask("aichat", ask(_OUTLIVED, "aichat", name, "Gründlich (think 5)!", late=True))
    await session.until_answered()


def _asked(
    session: Session, row: str, backend: str, name: str, question: str, *, late: bool = False
) -> Asked:
    return Asked(
        id=str(uuid.uuid4()),
        row=row,
        title=f"{name}: {question}",
        root=session.host.roots[backend],
        receiver=session.host.receiver,
        user=_USERS[name],
        question=f"{name}: {question}",
        late=late,
    )


def _panes(session: Session) -> str:
    return session.host.tmux("list-panes", "-a", "-F", "#{session_name}:#{window_name} #{pane_pid}")
