from __future__ import annotations

import os
import pwd
import socket
import sys
from contextlib import nullcontext
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import pytest
import trustme
from hypothesis import example, given
from hypothesis import strategies as st
from support.sidecar import new_secret
from support.users import without_privilege

from paliadin_contract.ids import is_label
from paliadin_sidecar.environment import find_state_dir, merged_environment
from paliadin_sidecar.errors import BadSettings
from paliadin_sidecar.outbox.database import LATE_S
from paliadin_sidecar.settings import RootSpec, Settings

SECRET, OLD_SECRET = new_secret(), new_secret()
LEAST = {
    "PALIADIN_CALLBACK_URL": "https://paliad.example.org/callback",
    "PALIADIN_CALLBACK_SECRET": SECRET,
}


def settings(**environ: str) -> Settings:
    return Settings.from_environment(LEAST | environ)


def problems(**environ: str) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        settings(**environ)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def problem(name: str, value: str) -> str:
    """The one sentence about one wrong value."""
    (found,) = problems(**{name: value})
    return found


# --- the whole ------------------------------------------------------------------------------


def test_defaults() -> None:
    """Nothing but the callback's address and secret must be said."""
    assert asdict(settings()) == {
        "state_dir": Path("/var/lib/paliadin-sidecar"),
        "roots": (
            asdict(RootSpec("aichat", "paliadin", Path("/tmp/aichat/paliadin"))),
            asdict(RootSpec("legacy", "paliadin", Path("/tmp/paliadin"))),
        ),
        "owner": os.getuid(),
        "host_label": socket.gethostname(),
        "callback_url": "https://paliad.example.org/callback",
        "secrets": (SECRET,),
        "max_bytes": 4 * 1024 * 1024,
        "max_outbox": 1024**3,
        "keep_answers": 72 * 3600.0,
        "keep_turns": 90 * 86_400.0,
        "quiet_s": 5.0,
        "rescan_s": 2.0,
        "refused_s": 900.0,
        "callback_timeout_s": 10.0,
        "callback_insecure": False,
        "callback_ca_file": None,
        "events": "watchfiles",
        "log_level": "info",
        "metrics": None,
        "unknown": (),
    }


def test_all_that_can_be_said(tmp_path: Path) -> None:
    """Each variable is taken, white space around it is not."""
    authority = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    said = settings(
        PALIADIN_STATE_DIR=" /srv/state ",
        PALIADIN_WATCH="a/b=/srv/x : c-d/9=/srv/y/",
        PALIADIN_OWNER="4294967294",
        PALIADIN_HOST_LABEL=" mriver ",
        PALIADIN_CALLBACK_URL="http://paliad.example.org:8080/callback",
        PALIADIN_CALLBACK_SECRET=f" {SECRET}  {OLD_SECRET} ",
        PALIADIN_MAX_BYTES="1",
        PALIADIN_MAX_OUTBOX="1e9",
        PALIADIN_KEEP_ANSWERS="30d",
        PALIADIN_KEEP_TURNS="3650d",
        PALIADIN_QUIET_S="0",
        PALIADIN_RESCAN_S="0.05",
        PALIADIN_REFUSED_S="604800",
        PALIADIN_CALLBACK_TIMEOUT_S="60",
        PALIADIN_CALLBACK_INSECURE="1",
        PALIADIN_CALLBACK_CA_FILE=str(authority),
        PALIADIN_EVENTS="inotify",
        PALIADIN_LOG_LEVEL="Warning",
        PALIADIN_METRICS=" 127.0.0.1:9464 ",
    )
    assert said == Settings(
        state_dir=Path("/srv/state"),
        roots=(RootSpec("a", "b", Path("/srv/x")), RootSpec("c-d", "9", Path("/srv/y"))),
        owner=4294967294,
        host_label="mriver",
        callback_url="http://paliad.example.org:8080/callback",
        secrets=(SECRET, OLD_SECRET),
        max_bytes=1,
        max_outbox=1_000_000_000,
        keep_answers=30 * 86_400,
        keep_turns=3650 * 86_400,
        quiet_s=0,
        rescan_s=0.05,
        refused_s=604800,
        callback_timeout_s=60,
        callback_insecure=True,
        callback_ca_file=authority,
        events="inotify",
        log_level="warning",
        metrics=("127.0.0.1", 9464),
    )


def test_an_empty_variable_is_not_set() -> None:
    """What is empty or blank counts as not said."""
    names = [name for name in VARIABLES if name not in LEAST]
    assert settings(**dict.fromkeys(names, " ")) == settings()


def test_all_problems_at_once() -> None:
    """An operator sees everything that is wrong, in one go."""
    wrong = {name: "?" for name in VARIABLES if not name.startswith(("STATE", "CREDENTIALS"))}
    del wrong["PALIADIN_HOST_LABEL"]  # any text is one
    del wrong["PALIADIN_CALLBACK_SECRET_FILE"]  # the variable of the secret comes first
    del wrong["PALIADIN_RESPONSE_DIR"]  # as does the list of all roots
    found = problems(**wrong)
    assert {sentence.partition("=")[0].partition(":")[0] for sentence in found} == wrong.keys()
    assert len(found) == len(wrong)


def test_the_shim_s_own_variable_says_where_it_writes() -> None:
    """The legacy root by default; a list that is named holds as it is."""
    roots = settings(PALIADIN_RESPONSE_DIR=" /srv/answers ").roots
    assert roots == (
        RootSpec("aichat", "paliadin", Path("/tmp/aichat/paliadin")),
        RootSpec("legacy", "paliadin", Path("/srv/answers")),
    )
    watch = "a/b=/srv/x"
    assert settings(PALIADIN_RESPONSE_DIR="?", PALIADIN_WATCH=watch) == settings(
        PALIADIN_WATCH=watch
    )
    for value in ("answers", "/srv/../x", "/a:b/c=/d"):
        right = "must be an absolute path without ':'"
        assert (
            problem("PALIADIN_RESPONSE_DIR", value) == f"PALIADIN_RESPONSE_DIR={value!r}: {right}"
        )


def test_frozen() -> None:
    """Settings are read once and stay as they are."""
    with pytest.raises(FrozenInstanceError):
        settings().quiet_s = 1.0  # type: ignore[misc]  # what mypy forbids too is under test


# --- plain values ---------------------------------------------------------------------------

NUMBERS = {
    "PALIADIN_MAX_BYTES": ("max_bytes", 1, 64 * 1024 * 1024),
    "PALIADIN_MAX_OUTBOX": ("max_outbox", 1024**2, 1024**5),
    "PALIADIN_QUIET_S": ("quiet_s", 0, 600),
    "PALIADIN_RESCAN_S": ("rescan_s", 0.05, 60),
    "PALIADIN_REFUSED_S": ("refused_s", 0, 604_800),
    "PALIADIN_CALLBACK_TIMEOUT_S": ("callback_timeout_s", 0.1, 60),
}


@pytest.mark.parametrize("name", ["PALIADIN_KEEP_ANSWERS", "PALIADIN_KEEP_TURNS"])
def test_durations(name: str) -> None:
    """A number and its unit, up to a century."""
    field = name.removeprefix("PALIADIN_").lower()
    others = {"PALIADIN_KEEP_ANSWERS": "0", "PALIADIN_KEEP_TURNS": "36500d"}
    for value, seconds in (
        ("600s", 600),
        ("90m", 5400),
        (" 72h ", 259_200),
        ("36500d", 36_500 * 86_400),
    ):
        assert getattr(settings(**others | {name: value}), field) == seconds
    for value in (
        "72",
        "1y",
        "-1h",
        "1.5h",
        "1 h",
        "90D",
        "36501d",
        "\u0661h",
        "9" * 400 + "s",
        "00",
    ):
        right = "must be 0 or a duration such as 90s, 10m, 72h or 90d, at most 36500d"
        assert problems(**others | {name: value}) == [f"{name}={value!r}: {right}"]


def test_answers_need_not_be_kept() -> None:
    """0 is a duration."""
    assert settings(PALIADIN_KEEP_ANSWERS="0", PALIADIN_KEEP_TURNS="10m").keep_answers == 0


@pytest.mark.parametrize("value", ["0", "0s", "9m", "599s"])
def test_turns_are_kept_while_they_may_change(value: str) -> None:
    """What is forgotten earlier would come as a new turn."""
    name = "PALIADIN_KEEP_TURNS"
    (found,) = problems(PALIADIN_KEEP_ANSWERS="0", **{name: value})
    assert found == (
        f"{name}={value!r}: must be 10m or longer: until then an answer that changes is sent as a "
        "revision of its turn, and without the turn as a new one"
    )
    assert settings(PALIADIN_KEEP_ANSWERS="0", **{name: "600s"}).keep_turns == LATE_S


def test_turns_are_kept_as_long_as_their_answers() -> None:
    """An answer goes with its turn, whatever was promised for it; also where one is the default."""
    for answers, turns in (("72h", "71h"), ("", "2d"), ("91d", "")):
        said = {"PALIADIN_KEEP_ANSWERS": answers, "PALIADIN_KEEP_TURNS": turns}
        (found,) = problems(**said)
        assert found == (
            f"PALIADIN_KEEP_TURNS='{turns or '90d'}': must not be shorter than "
            f"PALIADIN_KEEP_ANSWERS={answers or '72h'}: an answer goes with its turn, and could "
            "not be sent again for as long as that says"
        )
    assert settings(PALIADIN_KEEP_ANSWERS="1d", PALIADIN_KEEP_TURNS="24h").keep_turns == 86_400


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name: str) -> None:
    """A number is taken at its bounds, and refused beyond them and where it is none."""
    field, least, most = NUMBERS[name]
    for bound in (least, most):
        assert getattr(settings(**{name: f"{bound}"}), field) == bound
    right = f"must be a number from {least:.12g} to {most:.12g}"
    for value in (f"{least - 0.01}", f"{most + 1}", "-1", "nan", "inf", "-inf", "1 s", "fünf"):
        assert problem(name, value) == f"{name}={value!r}: {right}"


@pytest.mark.parametrize("value", ["2", "yes", "true", "on", "-1", "01"])
def test_flag(value: str) -> None:
    """A flag is 1 or 0 and nothing else: nobody shall guess what `yes` does to security."""
    name = "PALIADIN_CALLBACK_INSECURE"
    assert problem(name, value) == f"{name}={value!r}: must be 1 or 0"
    assert settings(**{name: "0"}).callback_insecure is False


def test_log_level() -> None:
    """A level is one of four, in any case."""
    for level in ("debug", "INFO", "warning", "Error"):
        assert settings(PALIADIN_LOG_LEVEL=level).log_level == level.lower()
    right = "must be one of debug, info, warning, error"
    assert problem("PALIADIN_LOG_LEVEL", "loud") == f"PALIADIN_LOG_LEVEL='loud': {right}"


def test_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is one of two, and the one that is a package more is missed at the start."""
    name = "PALIADIN_EVENTS"
    assert settings(**{name: "Watchfiles"}).events == "watchfiles"
    assert settings(**{name: "inotify"}).events == "inotify"
    assert problem(name, "poll") == f"{name}='poll': must be one of watchfiles, inotify"
    monkeypatch.setitem(sys.modules, "asyncinotify", None)
    assert problem(name, "inotify") == (
        f"{name}='inotify': needs the package asyncinotify, as in requirements/sidecar.txt"
    )


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "No such file or directory"),
        ("forbidden", "Permission denied"),
        ("x" * 300, "File name too long"),
        ("folder", ""),
        ("empty", ""),
        ("text", ""),
    ],
)
def test_authority(tmp_path: Path, name: str, why: str) -> None:
    """An authority must be a file of certificates that can be read."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hunter2\n")
    (tmp_path / "forbidden").touch(mode=0)
    path = tmp_path / name
    with without_privilege() if name == "forbidden" else nullcontext():
        found = problem("PALIADIN_CALLBACK_CA_FILE", str(path))
    right = f"must be a readable file of PEM certificates ({why}"
    assert found.startswith(f"PALIADIN_CALLBACK_CA_FILE={str(path)!r}: {right}")
    assert "hunter2" not in found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
        ("localhost:65535", ("localhost", 65535)),
        ("[::1]:9464", ("::1", 9464)),
        ("", None),
    ],
)
def test_metrics(value: str, found: tuple[str, int] | None) -> None:
    """An address of either family, also one that others reach: there is no secret in it."""
    assert settings(PALIADIN_METRICS=value).metrics == found


@pytest.mark.parametrize(
    "value",
    [
        "9464", ":9464", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464",
        "example.org:9464", "127.0.0.1:x", "u@127.0.0.1:9464", "127.0.0.1:9464/metrics", "[::1:1",
        "http://127.0.0.1:9464", "127.0.0.1:-1",
    ],
)  # fmt: skip
def test_no_metrics(value: str) -> None:
    """Anything else is refused, a name too: tomorrow it could be another address."""
    right = "must be <address>:<port>, such as 127.0.0.1:9464"
    assert problem("PALIADIN_METRICS", value) == f"PALIADIN_METRICS={value!r}: {right}"


def test_owner() -> None:
    """The owner is a user's name or number."""
    me = pwd.getpwuid(os.getuid())
    assert settings(PALIADIN_OWNER=me.pw_name).owner == me.pw_uid
    assert settings(PALIADIN_OWNER="0").owner == 0
    right = "must be a user's name or number on this host"
    for value in ("nobody-of-this-name", "-1", "٣", "99999999999", "4294967296", "1.0"):
        assert problem("PALIADIN_OWNER", value) == f"PALIADIN_OWNER={value!r}: {right}"


@pytest.mark.parametrize("name", ["PALIADIN_HOST_LABEL", "PALIADIN_STATE_DIR", "PALIADIN_WATCH"])
@pytest.mark.parametrize("value", ["/srv/\0x", "/srv/\udcff"])
def test_no_text(name: str, value: str) -> None:
    """What no path, name or body can hold is reported at the start, and not when it is needed."""
    assert problem(name, value) == f"{name} must be UTF-8 without NUL"


# --- the state directory --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, "/var/lib/paliadin-sidecar"),
        ({"STATE_DIRECTORY": "/var/lib/x"}, "/var/lib/x"),
        ({"STATE_DIRECTORY": "/var/lib/x:/var/lib/y"}, "/var/lib/x"),
        ({"PALIADIN_STATE_DIR": "/srv/x", "STATE_DIRECTORY": "/var/lib/x"}, "/srv/x"),
        ({"PALIADIN_STATE_DIR": "/srv/x:y"}, "/srv/x:y"),
    ],
)
def test_state_dir(environ: dict[str, str], found: str) -> None:
    """The state directory is ours to say, else systemd's first, else the usual one."""
    assert find_state_dir(environ) == Path(found)
    assert settings(**environ).state_dir == Path(found)


# --- the roots ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        "/tmp/x",
        "aichat=/tmp/x",
        "aichat/=/tmp/x",
        "/paliadin=/tmp/x",
        "a/b/c=/tmp/x",
        "aichat/paliadin",
        "aichat/paliadin=",
        "aichat/paliadin=tmp/x",
        "aichat/paliadin=/tmp/../x",
        "aichat/paliadin=/tmp/x/..",
        "Aichat/paliadin=/tmp/x",
        "ai_chat/paliadin=/tmp/x",
        f"{'a' * 33}/paliadin=/tmp/x",
    ],
)
def test_bad_root(part: str) -> None:
    """A root that is not said in full is reported, each one."""
    right = (
        "must be <backend>/<persona>=<absolute path>, several joined by ':'; "
        "labels are of a-z, 0-9 and -"
    )
    sentence = f"PALIADIN_WATCH={part!r}: {right}"
    assert problems(PALIADIN_WATCH=f"a/b=/tmp/y:{part}") == [sentence]
    assert problems(PALIADIN_WATCH=f"{part}:a/b=/tmp/y:{part}") == [sentence, sentence]


@pytest.mark.parametrize(
    ("watch", "twice"),
    [
        ("a/b=/tmp/x:a/b=/tmp/y", "a/b"),
        ("a/b=/tmp/x:c/d=/tmp/x", "/tmp/x"),
        ("a/b=/tmp/x:c/d=/tmp/x/", "/tmp/x"),
    ],
)
def test_root_named_twice(watch: str, twice: str) -> None:
    """Two roots of one label would mix their turns, two of one path would push each twice."""
    right = "is named twice; each root needs a label and a path of its own"
    assert problem("PALIADIN_WATCH", watch) == f"PALIADIN_WATCH={twice!r}: {right}"


# --- the callback's address -----------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://paliad.example.org/callback",
        "HTTPS://paliad.example.org:8443",
        "https://192.0.2.1/callback",
        "http://127.0.0.1:8080/callback",
        "http://127.8.8.8/callback",
        "http://[::1]:8080/callback",
        "http://localhost/callback",
        "http://LocalHost/callback",
    ],
)
def test_good_url(url: str) -> None:
    """An https address anywhere, and http to this host, is taken as it is."""
    assert settings(PALIADIN_CALLBACK_URL=url).callback_url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://paliad.example.org/callback",
        "http://localhost.example.org/callback",
        "http://192.0.2.1/callback",
        "http://0.0.0.0/callback",
        "http://[2001:db8::1]/callback",
    ],
)
def test_http_to_others(url: str) -> None:
    """Plain http to another host must be asked for."""
    right = "must be https, or http to this host, or PALIADIN_CALLBACK_INSECURE=1"
    assert problem("PALIADIN_CALLBACK_URL", url) == f"PALIADIN_CALLBACK_URL={url!r}: {right}"
    allowed = settings(PALIADIN_CALLBACK_URL=url, PALIADIN_CALLBACK_INSECURE="1")
    assert allowed.callback_url == url


RIGHT_URL = "must be the https:// address of paliad's callback route"


@pytest.mark.parametrize(
    "url",
    [
        "paliad.example.org/callback",
        "//paliad.example.org/callback",
        "ftp://paliad.example.org/callback",
        "https:///callback",
        "https:",
        "https://[::1/callback",
        "https://paliad.example.org:port/callback",
        "https://paliad.example.org:65536/callback",
        "https://paliad example.org/callback",
        "https://paliad.example.org/call back",
        "https://paliad.example.org/\x7f",
        "https://paliad.example.org/\nx",
        "https://pälïad.example.org/callback",
    ],
)
def test_bad_url(url: str) -> None:
    """What is no address that a request could go to is reported at the start."""
    assert problem("PALIADIN_CALLBACK_URL", url) == f"PALIADIN_CALLBACK_URL={url!r}: {RIGHT_URL}"


def test_no_url() -> None:
    """Without an address there is nowhere to send to."""
    (found,) = problems(PALIADIN_CALLBACK_URL="")
    assert found == f"PALIADIN_CALLBACK_URL is not set: {RIGHT_URL}"


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@paliad.example.org/callback",
        "https://hunter2@paliad.example.org/callback",
        "https://paliad.example.org/callback?token=hunter2",
        "https://paliad.example.org/callback?a@b=hunter2",
        "https://paliad.example.org/callback#hunter2",
        "https://user:hunter2/x@paliad.example.org/callback",
        "https://user:x?hunter2@paliad.example.org/callback",
        "https://user:x#@hunter2@paliad.example.org/callback",
        "ftp://user:hunter2@paliad.example.org/callback",
        "user:hunter2@paliad.example.org/callback",
        "http://user:hunter2@paliad.example.org/callback",
        "https://user:hunter2@paliad.example.org:port/callback",
    ],
)
def test_secrets_in_a_url(url: str) -> None:
    """A user, a password or a query is refused, and shown in no message, however malformed."""
    found = problem("PALIADIN_CALLBACK_URL", url)
    assert found.startswith("PALIADIN_CALLBACK_URL='<hidden>': must ")
    assert "hunter2" not in found


@pytest.mark.parametrize("end", ["/callback?", "/callback#", "?", ":0/callback"])
def test_a_url_that_would_be_sent_as_another(end: str) -> None:
    """An empty query, and a port that stands for the scheme's own in other programs."""
    assert "must " in problem("PALIADIN_CALLBACK_URL", f"https://paliad.example.org{end}")


@pytest.mark.parametrize("host", ["a..example.org", ".example.org", f"{'a' * 64}.example.org"])
def test_a_host_that_no_lookup_takes(host: str) -> None:
    """It would fail at each attempt."""
    assert "must be the https://" in problem("PALIADIN_CALLBACK_URL", f"https://{host}/callback")


# --- the callback's secret ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("hunter2", "secret 1 does not begin with whsec_"),
        ("whsec_hunter2!", "secret 1 is not base64 after whsec_"),
        ("whsec_aHVudGVyMg==", "secret 1 is 7 bytes long, at least 24 are needed"),
        ("whsec_", "secret 1 is 0 bytes long, at least 24 are needed"),
        ("whsec_hünter2", "secret 1 is not base64 after whsec_"),
        (f"{SECRET} hunter2", "secret 2 does not begin with whsec_"),
        (f"{SECRET},{OLD_SECRET}", "secret 1 is not base64 after whsec_"),
    ],
    ids=["no prefix", "no base64", "short", "empty", "no ASCII", "the second", "a comma"],
)
def test_bad_secret(value: str, what: str) -> None:
    """What is wrong with a secret is reported without it, by its place."""
    (found,) = problems(PALIADIN_CALLBACK_SECRET=value)
    assert found == f"PALIADIN_CALLBACK_SECRET: {what}; must be whsec_<base64>, 24 bytes or more"


def test_no_secret(tmp_path: Path) -> None:
    """Without a secret the message says how to make one; so with a credential that is not there."""
    for directory in ("", str(tmp_path), "x" * 5000):
        environ = LEAST | {"PALIADIN_CALLBACK_SECRET": "", "CREDENTIALS_DIRECTORY": directory}
        with pytest.raises(BadSettings) as caught:
            Settings.from_environment(environ)
        (found,) = caught.value.problems
        assert found == (
            "PALIADIN_CALLBACK_SECRET is not set: must be whsec_<base64>, the one that paliad has; "
            "where there is none yet, make one with "
            'echo "whsec_$(head -c 32 /dev/urandom | base64)"'
        )


def secret_from(path: Path | str, **environ: str) -> dict[str, str]:
    return LEAST | {
        "PALIADIN_CALLBACK_SECRET": "",
        "PALIADIN_CALLBACK_SECRET_FILE": str(path),
        **environ,
    }


def test_secret_file(tmp_path: Path) -> None:
    """A file may hold the secrets, on one line or on several."""
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n{OLD_SECRET}\n")
    assert Settings.from_environment(secret_from(path)).secrets == (SECRET, OLD_SECRET)


def test_credential(tmp_path: Path) -> None:
    """The credential of systemd is taken where nothing else is said."""
    (tmp_path / "callback-secret").write_text(SECRET)
    environ = secret_from("", CREDENTIALS_DIRECTORY=str(tmp_path))
    assert Settings.from_environment(environ).secrets == (SECRET,)


def test_which_secret(tmp_path: Path) -> None:
    """The variable comes before the file, and the file before the credential."""
    (tmp_path / "callback-secret").write_text("unused")
    (tmp_path / "file").write_text(OLD_SECRET)
    environ = secret_from(tmp_path / "file", CREDENTIALS_DIRECTORY=str(tmp_path))
    assert Settings.from_environment(environ).secrets == (OLD_SECRET,)
    environ["PALIADIN_CALLBACK_SECRET"] = SECRET
    assert Settings.from_environment(environ).secrets == (SECRET,)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"hunter2", ": secret 1 does not begin with whsec_; must be whsec_<base64>"),
        (b" \n", " is not set: must be whsec_<base64>"),
        (b"\xff hunter2", None),
        (None, None),
    ],
    ids=["malformed", "blank", "not UTF-8", "a directory"],
)
def test_bad_secret_file(tmp_path: Path, content: bytes | None, what: str | None) -> None:
    """What is wrong with a file is reported with its name, and without what it holds."""
    path = tmp_path / "callback-secret"
    path.mkdir() if content is None else path.write_bytes(content)
    for environ, source in (
        (secret_from(path), "PALIADIN_CALLBACK_SECRET_FILE"),
        (secret_from("", CREDENTIALS_DIRECTORY=str(tmp_path)), "the credential callback-secret"),
    ):
        with pytest.raises(BadSettings) as caught:
            Settings.from_environment(environ)
        (found,) = caught.value.problems
        if what is None:
            error = "IsADirectoryError" if content is None else "UnicodeDecodeError"
            right = f"must be a text file that this user can read ({error})"
            assert found == f"{source}={str(path)!r}: {right}"
        else:
            assert found.startswith(f"{source} ({path}){what}")
        assert "hunter2" not in found


def test_a_secret_where_it_does_not_belong() -> None:
    """A secret that was given to another variable is shown in no message either."""
    for name in VARIABLES:
        environ = LEAST | {"PALIADIN_CALLBACK_SECRET": "", name: "whsec_hunter2"}
        with pytest.raises(BadSettings) as caught:
            Settings.from_environment(environ)
        assert "hunter2" not in str(caught.value), name


def test_no_secret_in_a_repr() -> None:
    """Settings may end in a traceback: their secrets do not."""
    said = settings(PALIADIN_CALLBACK_SECRET=f"{SECRET} {OLD_SECRET}")
    for secret in said.secrets:
        assert secret.removeprefix("whsec_") not in repr(said) + str(said)


def test_a_comment_behind_a_value_is_a_part_of_it(tmp_path: Path) -> None:
    """As systemd reads it for the daemon: the commands find wrong what the daemon does."""
    path = tmp_path / "sidecar.env"
    path.write_text("PALIADIN_QUIET_S=7   # seconds\nexport PALIADIN_RESCAN_S=3\n")
    environ = merged_environment({}, path)
    said, ignored = problems(**environ)
    assert ignored.startswith("export PALIADIN_RESCAN_S is no variable")
    assert said == "PALIADIN_QUIET_S='7   # seconds': must be a number from 0 to 600"


# --- whatever is said -----------------------------------------------------------------------

VARIABLES = (
    "PALIADIN_CALLBACK_URL",
    "PALIADIN_CALLBACK_SECRET",
    "PALIADIN_CALLBACK_SECRET_FILE",
    "PALIADIN_WATCH",
    "PALIADIN_RESPONSE_DIR",
    "PALIADIN_OWNER",
    "PALIADIN_STATE_DIR",
    "PALIADIN_HOST_LABEL",
    "PALIADIN_MAX_BYTES",
    "PALIADIN_KEEP_ANSWERS",
    "PALIADIN_KEEP_TURNS",
    "PALIADIN_QUIET_S",
    "PALIADIN_RESCAN_S",
    "PALIADIN_REFUSED_S",
    "PALIADIN_CALLBACK_TIMEOUT_S",
    "PALIADIN_CALLBACK_INSECURE",
    "PALIADIN_CALLBACK_CA_FILE",
    "PALIADIN_EVENTS",
    "PALIADIN_LOG_LEVEL",
    "PALIADIN_METRICS",
    "STATE_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
)
values = st.one_of(
    st.text(st.characters(codec=None)),
    st.lists(
        st.sampled_from(
            [
                *("https://", "http:", "//", "/", ":", "@", "?", "#", "[", "]", "=", "a", "/tmp/x"),
                *("1", "-", "e", ".", "0", "nan", "whsec_", "\0", "\udcff", "\n", " ", "x" * 300),
            ]
        )
    ).map("".join),
)


@given(st.dictionaries(st.sampled_from(VARIABLES), values))
@example({"CREDENTIALS_DIRECTORY": "x" * 5000})
@example({"CREDENTIALS_DIRECTORY": "\0"})
@example({"PALIADIN_CALLBACK_SECRET_FILE": "\0"})
@example({"PALIADIN_CALLBACK_CA_FILE": "\0"})
@example({"PALIADIN_OWNER": "\ud800"})
def test_whatever_is_said(environ: dict[str, str]) -> None:
    """Settings are sound, or every problem is a sentence about a variable: nothing else."""
    wrong: list[str] | None = None
    try:
        said = Settings.from_environment(LEAST | environ)
    except BadSettings as exc:
        wrong = exc.problems
        str(exc).encode()  # it can be printed
    if wrong is not None:
        assert wrong
        for sentence in wrong:
            assert sentence.startswith(("PALIADIN_", "CREDENTIALS_", "STATE_", "the credential"))
    else:
        assert said.state_dir.is_absolute()
        assert all(is_label(r.backend) and is_label(r.persona) for r in said.roots)
        assert all(r.path.is_absolute() for r in said.roots)
        assert said.secrets
        for field, least, most in NUMBERS.values():
            assert least <= getattr(said, field) <= most
        for path in (said.state_dir, *(r.path for r in said.roots)):
            str(path).encode()


@given(values, values)
def test_no_secret_is_told(before: str, after: str) -> None:
    """Whatever surrounds a secret, no message holds it."""
    secret = f"{before}hunter-2{after}"  # a hyphen is no base64: whatever comes is refused
    with pytest.raises(BadSettings) as caught:
        settings(PALIADIN_CALLBACK_SECRET=f"{SECRET} {secret}")
    assert "hunter-2" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize("shape", ["\ufeff{}\n", "{}\ufeff", "\ufeff{0} \ufeff{0}\r\n"])
def test_a_secret_with_a_byte_order_mark(tmp_path: Path, shape: str) -> None:
    """An editor left it, and it is no part of the secret, wherever files were joined."""
    path, text = tmp_path / "secret", shape.format(SECRET)
    path.write_text(text, encoding="utf-8", newline="")
    assert set(Settings.from_environment(secret_from(path)).secrets) == {SECRET}
    assert set(settings(PALIADIN_CALLBACK_SECRET=text).secrets) == {SECRET}
