"""The callback's configuration, and receivers with one thing wrong: the cause is named."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest
import trustme
from support.checking import findings, mend
from support.receiver import Receiver, Reply, verifying

from paliadin_sidecar.operator.checks.receiver import ping
from paliadin_sidecar.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.sidecar import Sidecar


def pinged(host: Sidecar, url: str, **environ: str) -> dict[str, tuple[str, str]]:
    """Level and message of each finding."""
    environ = host.environ | {"PALIADIN_CALLBACK_URL": url} | environ
    found = anyio.run(ping, Settings.from_environment(environ))
    return {each.subject: (each.level, each.message) for each in found}


def server(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def issued(ca: trustme.CA, name: str, days: int = 0) -> ssl.SSLContext:
    """A server's certificate, valid from or until some days from now."""
    now = datetime.now(UTC)
    until = now + timedelta(days=days) if days < 0 else None
    since = now + timedelta(days=days) if days > 0 else None
    return server(ca.issue_cert(name, not_after=until, not_before=since))


@pytest.mark.parametrize(
    ("name", "days", "what", "says"),
    [
        ("127.0.0.1", 0, "", ""),
        ("paliad.example.org", 0, "tls (wrong_name)", "is for another name"),
        ("127.0.0.2", 0, "tls (wrong_name)", "is for another name"),
        ("127.0.0.1", -1, "tls (expired)", "has expired"),
        ("127.0.0.1", 1, "tls (not_yet_valid)", "is not valid yet"),
    ],
)
def test_certificates(host: Sidecar, name: str, days: int, what: str, says: str) -> None:
    """A wrong name and a wrong time are two things, and no authority is missing."""
    ca = trustme.CA()
    pem = host.base / "ca.pem"
    ca.cert_pem.write_to_path(str(pem))
    with Receiver(verifying(host.secret), tls=issued(ca, name, days)) as receiver:
        found = pinged(host, receiver.url, PALIADIN_CALLBACK_CA_FILE=str(pem))
    level, message = found["ping"]
    assert level == ("wrong" if what else "ok")
    assert message.startswith(f"{what}, so answers wait here; " if what else "204 after")
    assert says in message


def test_an_unknown_authority(host: Sidecar) -> None:
    """That one is mended by naming it."""
    with Receiver(tls=issued(trustme.CA(), "127.0.0.1")) as receiver:
        level, message = pinged(host, receiver.url)["ping"]
    assert level == "wrong"
    assert message.startswith("tls (unknown_authority), so answers wait here; ")
    assert "PALIADIN_CALLBACK_CA_FILE" in message


def test_plain_http_where_https_is_configured(host: Sidecar, receiver: Receiver) -> None:
    """The certificate is not blamed for what has none."""
    message = pinged(
        host, receiver.url.replace("http:", "https:"), PALIADIN_CALLBACK_TIMEOUT_S="0.5"
    )["ping"][1]
    assert "that port speaks plain HTTP, no TLS" in message
    assert "certificate" not in message


@contextmanager
def listener(say: bytes) -> Iterator[str]:
    """A port that says this to whoever comes, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        kept: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    one, _ = listening.accept()
                except OSError:
                    return
                kept.append(one)
                one.sendall(say)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{listening.getsockname()[1]}/callback"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
        for one in kept:
            one.close()


def test_something_else_where_https_is_configured(host: Sidecar) -> None:
    """Another service's greeting is no HTTP, and no certificate's fault either."""
    with listener(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        message = pinged(host, url)["ping"][1]
    assert message.startswith("tls (no_tls), so answers wait here; that port does not speak TLS")


def test_https_where_http_is_configured(host: Sidecar) -> None:
    """Whatever the TLS port does with it, the scheme is named."""
    with Receiver(tls=issued(trustme.CA(), "127.0.0.1")) as receiver:
        message = pinged(host, receiver.url.replace("https:", "http:"))["ping"][1]
    assert "that port speaks TLS: PALIADIN_CALLBACK_URL must begin with https://" in message


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        (
            "https://paliad.example.org/paliadin/callback",
            "https://paliad.example.org/paliadin/callback",
        ),
        ("/new/", "http://127.0.0.1:PORT/new/"),
        (
            "https://u:geheim@paliad.example.org/x?token=geheim#geheim",
            "https://paliad.example.org/x",
        ),
    ],
)
def test_a_redirect(host: Sidecar, receiver: Receiver, location: str, shown: str) -> None:
    """It is not followed, and where it points is said, without what may be a secret."""
    receiver.behaviour = lambda _: Reply(301, {"location": location})
    level, message = pinged(host, receiver.url)["ping"]
    assert level == "wrong"
    assert "redirects are not followed" in message
    assert message.endswith(f"It points to {shown.replace('PORT', str(receiver.port))}")
    assert "geheim" not in message


@pytest.mark.parametrize("headers", [{}, {"location": "http://[bad"}])
def test_a_redirect_to_nowhere(host: Sidecar, receiver: Receiver, headers: dict[str, str]) -> None:
    """Without an address, or with one that is none, that it is a redirect is still said."""
    receiver.behaviour = lambda _: Reply(302, headers)
    assert pinged(host, receiver.url)["ping"][1].endswith("must be the last address")


def test_a_401_without_a_date_may_be_the_clocks(host: Sidecar, receiver: Receiver) -> None:
    """The secret is not blamed alone, and this host's time is there to be compared."""
    receiver.behaviour = lambda _: Reply(401)
    found = pinged(host, receiver.url)
    assert "PALIADIN_CALLBACK_SECRET" in found["ping"][1]
    assert "clocks" in found["ping"][1]
    level, message = found["clock"]
    assert level == "note"
    assert "the receiver sends no Date" in message
    assert message.endswith("date -u, on both")


def test_a_204_without_a_date_says_nothing_of_clocks(host: Sidecar, receiver: Receiver) -> None:
    """What was accepted was lately signed."""
    assert "clock" not in pinged(host, receiver.url)


def test_a_wrong_signature_is_refused(host: Sidecar, receiver: Receiver) -> None:
    """A good receiver is asked both ways, and shows that it verifies."""
    receiver.behaviour = verifying(host.secret)
    assert pinged(host, receiver.url)["signature check"] == (
        "ok", "a ping with a wrong signature gets 401",
    )  # fmt: skip


@pytest.mark.parametrize("status", [200, 204])
def test_a_page_that_takes_everything(host: Sidecar, receiver: Receiver, status: int) -> None:
    """A proxy's login page, or a route that verifies nothing: its 2xx would lose each answer."""
    receiver.behaviour = lambda _: Reply(status, body=b"" if status == 204 else b"<html>Login")
    level, message = pinged(host, receiver.url)["signature check"]
    assert level == "wrong"
    assert message.startswith(f"a ping with a wrong signature gets {status} as well")
    assert "PALIADIN_CALLBACK_URL" in message


def test_who_is_not_well_is_not_asked_again(host: Sidecar, receiver: Receiver) -> None:
    """Where the good ping is refused, a wrong one would say nothing."""
    receiver.behaviour = lambda _: Reply(503)
    assert "signature check" not in pinged(host, receiver.url)
    assert len(receiver.pings) == 1


@pytest.mark.parametrize("name", ["sidecar.env", "callback-secret", "named"])
def test_a_secret_that_everybody_may_read(host: Sidecar, name: str) -> None:
    """Wherever it stands; the agent could sign with it."""
    secret = host.environ.pop("PALIADIN_CALLBACK_SECRET")
    files = {"sidecar.env": f"PALIADIN_CALLBACK_SECRET={secret}\n"} if name[0] == "s" else {}
    shipped = (Path(__file__).parents[3] / "systemd/sidecar.env").read_text()  # explains secrets
    shipped = shipped.replace("\nPALIADIN_", "\n#PALIADIN_")
    for file, text in ({"sidecar.env": shipped, name: secret} | files).items():
        (host.base / file).write_text(text)
        (host.base / file).chmod(0o644)
    if name == "named":
        host.environ["PALIADIN_CALLBACK_SECRET_FILE"] = str(host.base / name)
    check = ("check", "--json", "--env-file", f"{host.base}/sidecar.env")
    done = host.typed(*check)
    (wrong,) = [f["message"] for f in json.loads(done.stdout) if f["level"] == "wrong"]
    assert wrong.startswith(f"{host.base}/{name} can be read by everybody")
    mend(wrong)
    assert host.typed(*check).returncode == 0


def test_answers_in_the_clear(host: Sidecar, receiver: Receiver) -> None:
    """Http to another host is allowed on request, and named each time."""
    url = "http://paliad.example.org/callback"
    environ = {"PALIADIN_CALLBACK_URL": url, "PALIADIN_CALLBACK_INSECURE": "1"}
    assert findings(host, **environ)["callback"][0] == "note"


def test_a_good_clock(host: Sidecar, receiver: Receiver) -> None:
    """Also what is well is said, with the difference."""
    receiver.behaviour = lambda _: Reply(204, {"date": formatdate(usegmt=True)})
    found = json.loads(host.typed("check", "--ping", "--json").stdout)
    assert [f["level"] for f in found if f["subject"] == "clock"] == ["ok"]


def test_a_rotation_that_is_not_over(host: Sidecar) -> None:
    """Two secrets are no error, and not to be forgotten."""
    host.environ["PALIADIN_CALLBACK_SECRET"] += f" {host.secret}"
    assert findings(host)["callback secret"][0] == "note"
