"""The daemon as a process: files in, callbacks out."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from support.receiver import Receiver, Reply
from support.sidecar import TRAILER, Sidecar, new_secret
from support.tokens import unsigned_token
from support.users import root_only
from support.waiting import PATIENCE_S, until

from paliadin_sidecar.host.storage import user_name

#: Each is a shell command that leaves `$1.txt` complete in the end; `$2` is the trailer.
MANNERS = {
    "rename": 'printf "%s" "Antwort$2" > $1.tmp && mv $1.tmp $1.txt',
    "one write": 'printf "%s" "Antwort$2" > $1.txt',
    "slow writer": '{ printf Ant; sleep 1; printf "%s" "wort$2"; } > $1.txt',
    "trailer in one piece": 'printf Antwort > $1.txt; sleep .1; printf "%s" "$2" >> $1.txt',
    "trailer by lines": 'printf Antwort > $1.txt; printf "%s" "$2" | '
    'while IFS= read -r l; do printf "%s\\n" "$l" >> $1.txt; done',
    "empty first": ': > $1.txt; sleep .2; printf "%s" "Antwort$2" > $1.txt',
    "copied": 'printf "%s" "Antwort$2" > $1.src && cp $1.src $1.txt',
}


@pytest.mark.parametrize("manner", MANNERS)
def test_every_manner_of_writing_arrives_whole_and_once(
    host: Sidecar, receiver: Receiver, manner: str
) -> None:
    """Whatever process writes a file in whatever pieces, only the whole of it is pushed."""
    host.start()
    script = ["sh", "-c", f"cd {host.aichat} && {MANNERS[manner]}", "sh", "t1", TRAILER]
    subprocess.run(script, check=True)
    data = (host.aichat / "t1.txt").read_bytes()
    request = receiver.wait("t1")
    assert request.json["data"]["response"].encode() == data == b"Antwort" + TRAILER.encode()
    assert request.id == f"aichat_paliadin_t1_1_{hashlib.sha256(data).hexdigest()[:16]}"
    receiver.verify_all(host.secret)
    assert host.stop() == 0
    assert len(receiver.turns) == 1


def test_a_file_without_a_trailer_is_pushed_when_it_was_quiet(
    host: Sidecar, receiver: Receiver
) -> None:
    """No end mark: it must have been unchanged for PALIADIN_QUIET_S first."""
    host.start()
    written = time.monotonic()
    (host.aichat / "t1.txt").write_text("ohne Ende")
    assert receiver.wait("t1").at - written >= 0.5
    assert receiver.wait("t1").json["data"]["response"] == "ohne Ende"


def test_a_file_that_was_deleted_after_it_was_opened_arrives(
    host: Sidecar, receiver: Receiver
) -> None:
    """A poller may take the name away; what was opened is read to its end."""
    host.environ["PALIADIN_QUIET_S"] = "1.5"
    host.start()
    path = host.legacy / "t1.txt"
    path.write_text("ohne Ende, und gleich weg")
    until("the daemon holding the file", lambda: _holds(host, path))
    path.unlink()
    assert receiver.wait("t1").json["data"]["response"] == "ohne Ende, und gleich weg"


def test_a_trailer_that_comes_after_a_poller_took_the_text_costs_nothing(
    host: Sidecar, receiver: Receiver
) -> None:
    """The text is pushed, the bare trailer is only audited."""
    host.start()
    path = host.legacy / "t1.txt"
    path.write_text("der Text")
    until("the daemon holding the file", lambda: _holds(host, path))
    path.unlink()
    with path.open("a") as file:
        file.write(TRAILER)
    assert receiver.wait("t1").json["data"]["response"] == "der Text"
    assert host.wait_event("turn.revised", turn_id="t1")["why"] == "no_text"
    assert host.stop() == 0
    assert len(receiver.turns) == 1


def test_a_replaced_file_is_a_revision_and_the_same_content_is_not(
    host: Sidecar, receiver: Receiver
) -> None:
    """New content under an old name counts up; a rewrite of the same bytes is nothing new."""
    host.start()
    host.answer("t1", "eins")
    receiver.wait("t1")
    host.answer("t1", "eins")
    host.answer("t1", "zwei")
    second = receiver.wait("t1", 2)
    assert second.json["data"]["revision"] == 2
    assert second.json["data"]["response"].startswith("zwei")
    assert host.stop() == 0
    assert len(receiver.turns) == 2


def test_the_token_s_hints_are_there_also_when_the_token_is_gone(
    host: Sidecar, receiver: Receiver
) -> None:
    """Who waits is read when the token is seen, long before a late answer comes."""
    host.start()
    token = host.aichat / "t1.jwt"
    token.write_text(unsigned_token(jti="submitted-1", sub="user-1"))
    until("the hint", lambda: "submitted-1" in host.command("show", "t1", "--json").stdout)
    token.unlink()
    host.answer("t1")
    data = receiver.wait("t1").json["data"]
    assert (data["submitted_turn_id"], data["user_id"]) == ("submitted-1", "user-1")
    line = host.wait_event("turn.accepted", turn_id="t1")
    assert (line["submitted_turn_id"], line["user"]) == ("submitted-1", "user-1")


def test_roots_may_appear_later_and_be_deleted_and_made_again(
    host: Sidecar, receiver: Receiver
) -> None:
    """A missing root is watched as soon as it is there, each time."""
    shutil.rmtree(host.aichat)
    host.start()
    host.wait_event("root.missing", backend="aichat")
    for n in (1, 2):
        host.aichat.mkdir(mode=0o700)
        host.answer(f"t{n}")
        receiver.wait(f"t{n}")
        shutil.rmtree(host.aichat)
        host.wait_event("root.missing", count=n + 1, backend="aichat")
    kept = host.base / "elsewhere"
    host.legacy.rename(kept)
    host.legacy.mkdir(mode=0o700)
    host.wait_event("root.replaced", backend="legacy")
    host.answer("t3", root=host.legacy)
    receiver.wait("t3")


def test_nothing_in_the_roots_is_changed(host: Sidecar, receiver: Receiver) -> None:
    """Other systems own the roots: the daemon only reads there."""
    host.start()
    host.answer("t1")
    (host.aichat / "t1.jwt").write_text(unsigned_token(jti="a", sub="b"))
    receiver.wait("t1")
    before = [(p.name, p.stat()) for p in sorted(host.aichat.iterdir())]
    host.stop()
    after = [(p.name, p.stat()) for p in sorted(host.aichat.iterdir())]
    keep = ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns", "st_mode", "st_nlink")
    assert [(n, [getattr(s, k) for k in keep]) for n, s in before] == [
        (n, [getattr(s, k) for k in keep]) for n, s in after
    ]


def test_old_files_are_history_once_and_what_came_while_down_is_pushed(
    host: Sidecar, receiver: Receiver
) -> None:
    """History is what was there for 15 minutes when the root was first met, and no more."""
    host.answer("old")
    host.answer("young")
    _age(host.aichat / "old.txt", 3600)
    host.start()
    receiver.wait("young")
    assert host.stop() == 0
    host.answer("while-down")
    _age(host.aichat / "while-down.txt", 3600)
    host.start()
    receiver.wait("while-down")
    assert host.stop() == 0
    assert host.events("turn.history", turn_id="old")
    assert receiver.of("old") == []


def test_after_an_outbox_was_lost_nothing_becomes_history(
    host: Sidecar, receiver: Receiver
) -> None:
    """What an outbox that is gone may not have delivered is pushed, under its old id."""
    host.start()
    host.answer("t1")
    first = receiver.wait("t1")
    host.stop()
    _age(host.aichat / "t1.txt", 3600)
    for part in host.state.glob("outbox.db*"):
        part.unlink()
    host.start()
    again = receiver.wait("t1", 2)
    assert again.id == first.id
    assert json.loads(again.body)["data"]["response"] == json.loads(first.body)["data"]["response"]


def test_the_same_bytes_go_out_until_they_are_acknowledged(
    host: Sidecar, receiver: Receiver
) -> None:
    """Id and body are frozen; timestamp and signature are fresh, over restarts too."""
    receiver.behaviour = lambda _: Reply(503)
    host.start()
    host.answer("t1")
    first = receiver.wait("t1")
    (host.aichat / "t1.txt").unlink()
    host.kill()
    receiver.behaviour = lambda _: Reply(204)
    host.start()
    host.wait_event("delivery.delivered", turn_id="t1")
    last = receiver.turns[-1]
    assert (last.id, last.body) == (first.id, first.body)
    assert last is not first
    receiver.verify_all(host.secret)


def test_several_secrets_sign_while_one_is_being_rotated(host: Sidecar, receiver: Receiver) -> None:
    """A receiver that knows either secret can verify."""
    other = new_secret()
    host.environ["PALIADIN_CALLBACK_SECRET"] = f"{host.secret} {other}"
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    receiver.verify_all(host.secret)
    receiver.verify_all(other)


def test_sigterm_lets_an_attempt_in_flight_end(host: Sidecar) -> None:
    """A slow receiver's acknowledgement is recorded, and the exit code is 0."""
    arrived, go = threading.Event(), threading.Event()

    def behaviour(_: object) -> Reply:
        arrived.set()
        go.wait(10)
        return Reply()

    with Receiver(behaviour) as slow:
        host.environ["PALIADIN_CALLBACK_URL"] = slow.url
        host.start()
        host.answer("t1")
        assert arrived.wait(10)
        assert host.process is not None
        host.process.send_signal(signal.SIGTERM)
        host.wait_event("service.stopping")
        go.set()
        assert host.wait() == 0
    assert host.events("delivery.delivered", turn_id="t1")
    assert host.lines[-1]["event"] == "service.stopped"


def test_a_second_signal_ends_it_at_once_and_the_next_start_delivers(
    host: Sidecar, receiver: Receiver
) -> None:
    """Not even the grace is waited for; nothing is lost by it."""
    receiver.behaviour = lambda _: Reply(how="hang")
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    assert host.process is not None
    host.process.send_signal(signal.SIGTERM)
    host.wait_event("service.stopping")
    assert host.stop() == 128 + signal.SIGTERM
    assert not host.events("service.stopped")
    receiver.behaviour = lambda _: Reply()
    host.start()
    host.wait_event("delivery.delivered", turn_id="t1")


@root_only
def test_a_resolver_that_is_silent_does_not_hold_the_end(host: Sidecar) -> None:
    """A lookup that lasts for minutes hangs in a thread, which nothing can cancel."""
    address = "127.53.0.1"
    conf = host.base / "resolv.conf"
    conf.write_text(f"nameserver {address}\noptions timeout:30 attempts:5\n")
    mounted = f'mount --bind "{conf}" /etc/resolv.conf && exec "$0" "$@"'
    host.prefix = ["unshare", "-m", "sh", "-c", mounted]
    host.environ["PALIADIN_CALLBACK_URL"] = "https://paliad.example.org/callback"
    with socket.socket(type=socket.SOCK_DGRAM) as silent:
        silent.settimeout(PATIENCE_S)
        silent.bind((address, 53))
        host.start()
        host.answer("t1")
        silent.recv(512)
        assert host.stop() == 0
    assert host.lines[-1]["event"] == "service.stopped"


#: Ctrl-C comes in a callback of the interpreter's, where an error is dropped.
_CTRL_C_IN_A_CALLBACK = """
import os, signal, sys, time, weakref

class Finder:
    def find_spec(self, name, *_):
        if name == "paliadin_sidecar.daemon":
            weakref.finalize(Finder(), interrupt)

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # nothing is waited for: the interpreter looks for signals here

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever whoever started the tests had
sys.meta_path.insert(0, Finder())
"""


def test_ctrl_c_while_the_daemon_is_being_loaded(host: Sidecar) -> None:
    """It ends, whatever runs at that moment."""
    (host.base / "sitecustomize.py").write_text(_CTRL_C_IN_A_CALLBACK)
    host.environ["PYTHONPATH"] = str(host.base)
    host.start(wait=False)
    assert host.wait() == -signal.SIGINT
    assert host.output == b""


@root_only
def test_a_stop_that_comes_while_process_1_is_still_being_loaded(host: Sidecar) -> None:
    """The kernel drops what process 1 does not listen to, so it listens before all else."""
    host.prefix = ["unshare", "--pid", "--fork", "--kill-child"]
    host.start(wait=False)
    assert host.process is not None
    children = Path(f"/proc/{host.process.pid}/task/{host.process.pid}/children")
    first = int(until("process 1", lambda: children.read_text().split())[0])

    def is_caught() -> bool:
        status = Path(f"/proc/{first}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        # The last one that is set; what watches the tests' coverage has one for SIGTERM, too.
        return bool(caught >> (signal.SIGHUP - 1) & 1)

    until("a handler", is_caught)
    assert not host.state.exists()  # nothing has begun
    os.kill(first, signal.SIGTERM)
    assert host.wait() == 128 + signal.SIGTERM


#: Becomes argv[2] and what follows, and starts no thread any more once argv[1] is there.
NO_MORE_THREADS = """
import os, runpy, sys, threading
full, sys.argv = sys.argv[1], sys.argv[2:]
start = threading._start_new_thread
def start_where_there_is_room(*args):
    if os.path.exists(full):
        raise RuntimeError("can't start new thread")
    return start(*args)
threading._start_new_thread = start_where_there_is_room
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_limit_of_threads_that_is_reached_holds_no_turn(
    host: Sidecar, receiver: Receiver
) -> None:
    """Names are resolved, scans are made, and the end is in time: all have threads already."""
    full = host.base / "full"
    host.prefix = [sys.executable, "-c", NO_MORE_THREADS, str(full)]
    host.environ["PALIADIN_CALLBACK_URL"] = receiver.url.replace("127.0.0.1", "localhost")
    host.environ["NOTIFY_SOCKET"] = str(host.base / "no-systemd")
    host.start()
    full.touch()
    host.answer("t1")
    receiver.wait("t1")
    shutil.rmtree(host.legacy)
    host.wait_event("root.missing", backend="legacy")
    host.answer("t2")
    receiver.wait("t2")
    assert host.stop() == 0
    assert host.lines[-1]["event"] == "service.stopped"


def test_a_hanging_receiver_does_not_hold_the_end(host: Sidecar, receiver: Receiver) -> None:
    """The grace ends; the turn stays for the next start."""
    receiver.behaviour = lambda _: Reply(how="hang")
    host.start()
    host.answer("t1")
    receiver.wait("t1")
    assert host.stop() == 0
    receiver.behaviour = lambda _: Reply()
    host.start()
    host.wait_event("delivery.delivered", turn_id="t1")


@pytest.mark.slow
def test_a_reader_of_the_log_that_stopped_reading_holds_nothing(
    host: Sidecar, receiver: Receiver
) -> None:
    """With a full pipe on stdout turns still arrive, and the daemon still ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paliadin_sidecar.operator.cli", "run"],
        env=host.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        for n in range(300):  # three lines of some 300 bytes each: more than a pipe holds
            host.answer(f"t{n}")
        for n in range(300):
            receiver.wait(f"t{n}")
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        assert process.stdout is not None
        process.stdout.close()


def test_crashing_between_commit_and_print_prints_at_the_next_start(
    host: Sidecar, receiver: Receiver
) -> None:
    """Over a kill every event is printed at least once, in order, under its own number."""
    host.start()
    for n in range(20):
        host.answer(f"t{n}")
    receiver.wait("t0")
    host.kill()
    host.start()
    for n in range(20):
        receiver.wait(f"t{n}")
        host.wait_event("delivery.delivered", turn_id=f"t{n}")
    host.stop()
    numbers = sorted({line["event_id"] for line in host.lines})
    assert numbers == list(range(1, len(numbers) + 1))


def _holds(host: Sidecar, path: Path) -> bool:
    assert host.process is not None
    inode = path.stat().st_ino
    for fd in Path(f"/proc/{host.process.pid}/fd").iterdir():
        try:
            if fd.stat().st_ino == inode:
                return True
        except OSError:
            continue
    return False


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.mark.parametrize("kind", ["owner", "link", "size"])
def test_a_failure_says_what_was_wanted(host: Sidecar, receiver: Receiver, kind: str) -> None:
    """`untrusted` alone makes nobody look at the owner; the receiver gets the reason alone."""
    if kind == "owner" and os.geteuid() != 0:
        pytest.skip("needs root, to make another user's file")
    host.environ["PALIADIN_MAX_BYTES"] = "1000"
    host.start()
    path = host.aichat / "t1.txt"
    if kind == "owner":
        draft = host.aichat / "draft"
        draft.write_text("x")
        os.chown(draft, 1, 1)
        draft.rename(path)
        says = f"owner 1 ({user_name(1)}), wanted 0 (root), by PALIADIN_OWNER"
    elif kind == "link":
        path.symlink_to("/etc/hostname")
        says = "a symbolic link, no regular file"
    else:
        data = host.answer("t1", "x" * 2000)
        says = f"{len(data)} bytes, and at most 1000 by PALIADIN_MAX_BYTES"
    assert host.wait_event("turn.failed", turn_id="t1")["why"] == says
    assert says in host.command("show", "t1").stdout
    assert "why" not in receiver.wait("t1").json["data"]
