from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from email.utils import parsedate_to_datetime
from itertools import permutations
from threading import Barrier
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import example_receivers
from support.callbacks import MARKER, SECRET, callback, sign
from support.example_receivers import (
    GO,
    LANGUAGES,
    ROUTE,
    ExampleReceiver,
    Stored,
    post,
    running,
    stored,
)
from support.needs import need
from support.ranks import RANKS, RankCase
from support.sidecar import new_secret
from support.vectors import CALLBACKS, Vector

from paliadin_contract.signature import Keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_BODY = 32 * 1024 * 1024


OLD_SECRET = new_secret()


@pytest.fixture(scope="session", params=LANGUAGES)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return example_receivers.command(request.param, tmp_path_factory.mktemp("receiver"))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "turns"


@pytest.fixture
def receiver(command: list[str], store: Path) -> Iterator[ExampleReceiver]:
    with running(command, store, f"{OLD_SECRET} {SECRET}") as started:
        yield started


@pytest.fixture(scope="module")
def shared(
    command: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ExampleReceiver, Path]]:
    """A receiver of many tests, and its store: each sees that it leaves nothing there."""
    store = tmp_path_factory.mktemp("shared") / "turns"
    with running(command, store, f"{OLD_SECRET} {SECRET}") as started:
        yield started, store


@pytest.mark.parametrize("vector", CALLBACKS, ids=lambda v: v.name)
def test_every_callback(receiver: ExampleReceiver, store: Path, vector: Vector) -> None:
    """Each callback of the contract is answered 204, and a turn is stored as it was sent."""
    body = vector.body.encode()
    assert receiver.post(body, sign(body, vector.id)) == 204
    sent = json.loads(body)
    expected = {}
    if sent["type"] != "ping":
        fields = {name: sent["data"].get(name) for name in Stored.__struct_fields__}
        expected[fields["turn_id"]] = Stored(**fields)
    assert stored(store) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"ping","timestamp":"2026-11-22T08:00:00Z","data":{"host":"mriver"}}',
        b'{"type":"turn.moved","data":7}',
        b'{"type":"turn.moved"}',
    ],
)
def test_nothing_to_store(shared: tuple[ExampleReceiver, Path], body: bytes) -> None:
    """A ping, or a type of a later version, is answered 204."""
    receiver, store = shared
    assert receiver.post(body, sign(body)) == 204
    assert stored(store) == {}


def test_duplicate(receiver: ExampleReceiver, store: Path) -> None:
    """The same callback once more is answered 204, and known again by its id."""
    body, headers = callback("a")
    assert [receiver.post(body, headers) for _ in range(3)] == [204] * 3
    # Each line follows its answer, in a thread of its own.
    said = sorted(line.split()[-1] for line in receiver.lines(3))
    assert said == ["duplicate", "duplicate", "stored"]
    assert stored(store)["a"].response == MARKER


#: What may come for one turn, and what must be left of it in the end.
HISTORIES: list[tuple[list[tuple[int, str | None]], tuple[int, str | None]]] = [
    ([(1, "old"), (2, "new")], (2, "new")),
    ([(1, "old"), (2, "newer"), (12, "newest")], (12, "newest")),
    ([(1, None), (2, "a good file")], (2, "a good file")),
    ([(1, "an answer"), (2, None)], (1, "an answer")),
    ([(1, "old"), (2, "new"), (3, None)], (2, "new")),
    ([(1, None), (2, None)], (2, None)),
]


@pytest.mark.parametrize(("history", "end"), HISTORIES)
def test_any_order(
    receiver: ExampleReceiver,
    store: Path,
    history: list[tuple[int, str | None]],
    end: tuple[int, str | None],
) -> None:
    """A lower revision never replaces a higher one, nor a failure an answer, in any order."""
    orders = list(permutations(history))
    for number, order in enumerate(orders):
        for revision, response in order:
            assert receiver.post(*callback(f"turn-{number}", revision, response)) == 204
    left = stored(store)
    assert {(turn.revision, turn.response) for turn in left.values()} == {end}
    assert {turn.reason for turn in left.values()} == {"empty" if end[1] is None else None}
    assert len(left) == len(orders)


def test_one_revision_twice(receiver: ExampleReceiver, store: Path) -> None:
    """A sender that lost its store counts anew: of two contents of one revision the later wins."""
    for response in ("old", "new", "old"):
        assert receiver.post(*callback("a", 1, response)) == 204
    assert stored(store)["a"].response == "new"


@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
def test_ranks(receiver: ExampleReceiver, store: Path, case: RankCase) -> None:
    """Of several files of one turn and their revisions, that one counts which the table says."""
    for push in case.pushes:
        body = callback(push.file, push.revision, push.response, submitted_turn_id="asked")
        assert receiver.post(*body) == 204
    (left,) = stored(store).values()
    assert left.response == case.end


def test_one_turn_of_two_backends(receiver: ExampleReceiver, store: Path) -> None:
    """Another backend's file of the same id is another file: it does not replace the answer."""
    assert receiver.post(*callback("a", 2)) == 204
    body, headers = callback("a", 3, "fremd", backend="legacy")
    assert receiver.post(body, headers | sign(body, "legacy_paliadin_a_3_x")) == 204
    assert sorted(line.split()[-1] for line in receiver.lines(2)) == ["outranked", "stored"]
    assert stored(store)["a"].response == MARKER


def test_another_persona(receiver: ExampleReceiver, store: Path) -> None:
    """A turn that the receiver never heard of is answered 204 and kept."""
    assert receiver.post(*callback(str(uuid4()), submitted_turn_id=str(uuid4()))) == 204
    assert len(stored(store)) == 1


def without(headers: dict[str, str], name: str) -> dict[str, str]:
    return {other: value for other, value in headers.items() if other != name}


FORGERIES: dict[str, Callable[[bytes], dict[str, str]]] = {
    "no headers": lambda _: {},
    "no id": lambda body: without(sign(body), "webhook-id"),
    "no timestamp": lambda body: without(sign(body), "webhook-timestamp"),
    "no signature": lambda body: without(sign(body), "webhook-signature"),
    "an empty id": lambda body: sign(body, ""),
    "another id": lambda body: sign(body) | {"webhook-id": "other"},
    "another timestamp": lambda body: sign(body) | without(sign(body, age=9), "webhook-signature"),
    "another body": lambda body: sign(body.replace(b"an answer", b"an Answer")),
    "one byte more": lambda body: sign(body + b"\n"),
    "an unknown secret": lambda body: sign(body, keys=Keys([new_secret()])),
    "stale": lambda body: sign(body, age=301),
    "from the future": lambda body: sign(body, age=-400),
    "a timestamp in words": lambda body: sign(body) | {"webhook-timestamp": "now"},
    "an endless timestamp": lambda body: sign(body) | {"webhook-timestamp": "9" * 5000},
    "a timestamp in Arabic": lambda body: sign(body) | {"webhook-timestamp": "\u0661"},
    "an empty signature": lambda body: sign(body) | {"webhook-signature": ""},
    "no version": lambda body: {k: v.removeprefix("v1,") for k, v in sign(body).items()},
    "another version": lambda body: {k: v.replace("v1,", "v2,") for k, v in sign(body).items()},
    "no list": lambda body: sign(body) | {"webhook-signature": "v1, ,, v1"},
    "many wrong ones": lambda body: sign(body) | {"webhook-signature": "v1,AA== " * 500},
    "not ASCII": lambda body: sign(body) | {"webhook-signature": "v1,ä"},
}


@pytest.mark.parametrize("age", [400, -400])
def test_a_stamp_that_is_off(receiver: ExampleReceiver, age: float) -> None:
    """Its own log says by how much, so that nobody looks for another secret; and a Date is sent."""
    body, _ = callback("a")
    with closing(receiver.connect()) as connection:
        connection.request("POST", ROUTE, body, sign(body, age=age))
        with connection.getresponse() as response:
            assert response.status == 401
            skew_s = time.time() - parsedate_to_datetime(response.headers["date"]).timestamp()
    assert abs(skew_s) < 60
    (line,) = receiver.lines(1)
    assert line.startswith("401 bad signature: its stamp is ")
    assert abs(int(line.split()[6]) + age) < 60
    assert receiver.post(body, sign(body, keys=Keys([new_secret()]), age=age)) == 401
    assert receiver.lines(2)[-1].startswith("401 bad signature: of another secret")


def test_a_ping_where_nothing_can_be_stored(receiver: ExampleReceiver, store: Path) -> None:
    """That the process runs is not enough."""
    ping = b'{"type":"ping","timestamp":"2026-11-22T08:00:00Z","data":{"host":"mriver"}}'
    assert receiver.post(*callback("a")) == 204
    assert receiver.post(ping, sign(ping)) == 204
    if store.is_dir():
        shutil.rmtree(store)
    else:
        store.unlink()
        store.mkdir()
    assert receiver.post(ping, sign(ping)) == 503


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES)
def test_bad_signature(
    shared: tuple[ExampleReceiver, Path], forge: Callable[[bytes], dict[str, str]]
) -> None:
    """What is not proven, or no longer fresh, is answered 401, and nothing of it is kept."""
    receiver, store = shared
    body, _ = callback("a")
    assert receiver.post(body, forge(body)) == 401
    assert stored(store) == {}


def test_a_bad_signature_costs_the_good_one_nothing(receiver: ExampleReceiver, store: Path) -> None:
    """What was refused is taken when it comes again with its own signature."""
    body, _ = callback("a")
    for forge in FORGERIES.values():
        assert receiver.post(body, forge(body)) == 401
    assert receiver.post(*callback("a")) == 204
    assert stored(store)["a"].response == MARKER


def test_clocks_apart(receiver: ExampleReceiver) -> None:
    """Clocks that are less than 300 s apart do no harm."""
    body, _ = callback("a")
    assert receiver.post(body, sign(body, age=200)) == 204
    assert receiver.post(body, sign(body, age=-200)) == 204


def test_several_secrets(receiver: ExampleReceiver) -> None:
    """While a secret is replaced, either side may have the old, the new, or both."""
    body, _ = callback("a")
    for known in ([SECRET], [OLD_SECRET], [OLD_SECRET, SECRET], [new_secret(), SECRET]):
        assert receiver.post(body, sign(body, keys=Keys(known))) == 204


def malformed(**changed: object) -> bytes:
    sent = json.loads(callback("a")[0])
    sent["data"] |= changed
    return json.dumps(sent).encode()


NO_CALLBACKS = {
    "an empty body": b"",
    "half an object": b"{",
    "null": b"null",
    "a list": b"[]",
    "no type": b"{}",
    "type null": b'{"type":null}',
    "type 7": b'{"type":7}',
    "no data": b'{"type":"turn.completed"}',
    "data null": b'{"type":"turn.completed","data":null}',
    "data a list": b'{"type":"turn.completed","data":[]}',
    "data without most of it": b'{"type":"turn.completed","data":{"turn_id":"a"}}',
    "deep nesting": b'{"type":"ping","data":' + b"[" * 100_000,
    "a turn id that is a path": malformed(turn_id="../../etc/passwd"),
    "turn id null": malformed(turn_id=None),
    "a turn id with a line end": malformed(turn_id="a\n"),
    "a turn id of 65": malformed(turn_id="x" * 65),
    "an empty hint": malformed(submitted_turn_id=""),
    "hint 7": malformed(submitted_turn_id=7),
    "a backend with an underscore": malformed(backend="a_b"),
    "a persona that is a path": malformed(persona="../x"),
    "revision 0": malformed(revision=0),
    "revision 1.5": malformed(revision=1.5),
    "revision true": malformed(revision=True),
    "a revision in quotes": malformed(revision="1"),
    "a revision of 64 bits": malformed(revision=2**63),
    "a revision of 400 digits": malformed(revision=10**400),
    "response 7": malformed(response=7),
    "response null": malformed(response=None),
}


@pytest.mark.parametrize("body", NO_CALLBACKS.values(), ids=NO_CALLBACKS)
def test_malformed(shared: tuple[ExampleReceiver, Path], body: bytes) -> None:
    """What is proven but is no callback is answered 400, and nothing of it is kept."""
    receiver, store = shared
    assert receiver.post(body, sign(body)) == 400
    assert stored(store) == {}
    assert [path for path in store.parent.rglob("*") if path.suffix == ".json"] == []


def test_not_utf8(receiver: ExampleReceiver) -> None:
    """A body that is not UTF-8 is answered 400, though its signature is right."""
    body = b'{"type":"ping\xff"}'
    headers = sign(b"")
    signed = f"test.{headers['webhook-timestamp']}.".encode() + body
    mac = hmac.digest(base64.b64decode(SECRET.removeprefix("whsec_")), signed, "sha256")
    headers["webhook-signature"] = "v1," + base64.b64encode(mac).decode()
    assert receiver.post(body, headers) == 400


def announce(receiver: ExampleReceiver, length: str) -> bytes:
    """Send the head of a request and no body; return what comes back."""
    with socket.create_connection(("127.0.0.1", receiver.port), timeout=30) as connection:
        connection.sendall(
            f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        return connection.recv(65536)


def test_too_large(receiver: ExampleReceiver) -> None:
    """More than 32 MiB is answered 413 as soon as it is announced, also to who sends it all."""
    assert announce(receiver, str(MAX_BODY + 1)).startswith(b"HTTP/1.1 413 ")
    assert announce(receiver, str(10**15)).startswith(b"HTTP/1.1 413 ")
    assert receiver.post(bytes(MAX_BODY + 1), {}) == 413


@pytest.mark.slow
def test_large(receiver: ExampleReceiver, store: Path) -> None:
    """A body of exactly 32 MiB is taken."""
    empty, _ = callback("a", response="")
    response = "x" * (MAX_BODY - len(empty))
    body, headers = callback("a", response=response)
    assert len(body) == MAX_BODY
    assert receiver.post(body, headers) == 204
    assert stored(store)["a"].response == response


@pytest.mark.parametrize("length", ["-1", "x", "1x", "1 1"])
def test_no_length(shared: tuple[ExampleReceiver, Path], length: str) -> None:
    """A length that is none is answered 400."""
    assert announce(shared[0], length).startswith(b"HTTP/1.1 400 ")


def test_half_a_body(receiver: ExampleReceiver, store: Path) -> None:
    """A sender that goes away in the middle leaves nothing, and the receiver goes on."""
    with socket.create_connection(("127.0.0.1", receiver.port)) as connection:
        connection.sendall(b'POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"type"')
    receiver.lines(1)
    assert stored(store) == {}
    assert receiver.post(*callback("a")) == 204


def test_store_failed(receiver: ExampleReceiver, store: Path) -> None:
    """While it cannot store it answers 503, and what is sent again then is stored."""
    body, headers = callback("a")
    assert receiver.post(*callback("before")) == 204
    aside = store.with_suffix(".aside")
    store.rename(aside)
    in_the_way = store / "in the way" if aside.is_file() else store
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.touch()
    assert receiver.post(body, headers) == 503
    store.rename(store.with_suffix(".off"))
    aside.rename(store)
    assert receiver.post(body, headers) == 204
    assert set(stored(store)) == {"before", "a"}


def test_restart(command: list[str], store: Path) -> None:
    """What was acknowledged outlives a SIGKILL, and so does what is known of it."""
    with running(command, store, SECRET) as receiver:
        assert receiver.post(*callback("a", 2, "new")) == 204
        receiver.process.send_signal(signal.SIGKILL)
        receiver.process.wait()
    before = stored(store)
    with running(command, store, SECRET) as receiver:
        assert receiver.post(*callback("a", 2, "new")) == 204
        assert receiver.post(*callback("a", 1, "old")) == 204
        assert sorted(line.split()[-1] for line in receiver.lines(2)) == ["duplicate", "outranked"]
    assert stored(store) == before
    assert before["a"].response == "new"


def test_concurrent(receiver: ExampleReceiver, store: Path) -> None:
    """Ten at once, of one turn and of ten, are all answered 204, and each id is stored once."""
    start = Barrier(10)

    def post_both(number: int) -> list[int]:
        start.wait()
        ones = [callback("one", number + 1, str(number)), callback("one", 5, "4")]
        ones += [callback(f"own-{number}")]
        return [receiver.post(*one) for one in ones]

    with ThreadPoolExecutor(10) as pool:
        statuses = [status for each in pool.map(post_both, range(10)) for status in each]
    assert statuses == [204] * 30
    left = stored(store)
    assert set(left) == {"one", *(f"own-{number}" for number in range(10))}
    assert (left["one"].revision, left["one"].response) == (10, "9")
    lines = receiver.lines(30)
    assert len({line for line in lines if line.endswith(" stored")}) == sum(
        line.endswith(" stored") for line in lines
    )


def test_keep_alive(receiver: ExampleReceiver) -> None:
    """One connection carries many callbacks, also after one that was refused."""
    body, headers = callback("a")
    with closing(receiver.connect()) as connection:
        assert post(connection, body, headers) == 204
        first = connection.sock
        assert post(connection, body, {}) == 401
        assert post(connection, b"{}", sign(b"{}")) == 400
        assert post(connection, body, headers) == 204
        assert connection.sock is first


def test_prints(receiver: ExampleReceiver) -> None:
    """It prints one line for each callback, and never a word of an answer."""
    body, headers = callback("a")
    bodies = [body, malformed(response=MARKER, revision=0), MARKER.encode()]
    for one in bodies:
        receiver.post(one, sign(one))
        receiver.post(one, {})
    receiver.post(body, headers)
    # Each came over a connection, and so from a thread, of its own: the order is theirs.
    statuses = sorted(line.split()[0] for line in receiver.lines(7))
    assert statuses == [*("204", "204"), *("400", "400"), *("401", "401", "401")]
    printed = receiver.output.read_text()
    assert "MARKER" not in printed
    assert SECRET not in printed
    assert headers["webhook-id"] in printed


def test_private(receiver: ExampleReceiver, store: Path) -> None:
    """Nobody else on the host can read an answer."""
    assert receiver.post(*callback("a")) == 204
    paths = [store, *store.rglob("*")]
    private = [path for path in paths if path.stat().st_mode & 0o077 == 0]
    assert store in private
    assert store.is_file() or private == paths


@pytest.mark.parametrize(
    "secret",
    ["", " ", "whsec_", "whsec_!", "whsec_c2hvcnQ=", f"{SECRET} x"],
    ids=["none", "a space", "no key", "no base64", "a short key", "one good, one bad"],
)
def test_bad_secret(command: list[str], store: Path, secret: str) -> None:
    """Without a good secret it does not start, and says so without showing it."""
    done = subprocess.run(
        [*command, "127.0.0.1:0", str(store)],
        env=os.environ | {"PALIADIN_CALLBACK_SECRET": secret},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "PALIADIN_CALLBACK_SECRET must hold" in done.stderr
    assert SECRET not in done.stderr


def test_go_is_tidy() -> None:
    """The Go programs are as gofmt wants them, and the receiver as go vet wants it."""
    need("go")
    unformatted = subprocess.run(["gofmt", "-l", GO], check=True, capture_output=True)
    assert unformatted.stdout == b""
    subprocess.run(["go", "vet", "callback.go", "receiver.go"], cwd=GO, check=True)
