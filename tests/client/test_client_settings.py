"""What the environment selects, what is needed of it, and what is wrong with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.client_environments import AICHAT, LEGACY

from paliadin_client import ConfigError
from paliadin_client.settings import AichatSettings, LegacySettings, Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


def test_aichat() -> None:
    """`aichat` selects aichat, with the persona that is the default."""
    settings = Settings.from_environ(AICHAT)
    assert settings == Settings(
        backend=AichatSettings(
            url="http://127.0.0.1:8",
            token="token-marker",
            persona="paliadin",
            jwt_secret="secret-marker-of-32-bytes-and-more",
        ),
        deadline_s=300,
    )


def test_legacy() -> None:
    """Anything else selects legacy, with the port and prefix that are the default."""
    assert Settings.from_environ(LEGACY).backend == LegacySettings(
        host="mriver.example.org",
        port=22022,
        user=None,
        key="key-marker",
        known_hosts="mriver.example.org ssh-ed25519 AAAA",
        prefix="paliad-paliadin",
    )


@pytest.mark.parametrize(
    ("value", "warned"),
    [(None, 0), ("", 0), (" ", 0), ("legacy", 0), ("AIChat", 1), ("\x1b[2J", 1)],
)
def test_unknown_backend(value: str | None, warned: int, caplog: pytest.LogCaptureFixture) -> None:
    """Empty, unset and unknown mean legacy; an unknown value is named in a warning."""
    environ = dict(AICHAT)
    del environ["PALIADIN_BACKEND"]
    if value is not None:
        environ["PALIADIN_BACKEND"] = value
    assert isinstance(Settings.from_environ(environ).backend, LegacySettings)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned
    assert (repr(value) in caplog.text) == bool(warned)


@pytest.mark.parametrize(
    ("environ", "problems"),
    [
        ({"PALIADIN_BACKEND": "aichat"}, ["AICHAT_URL is not set", "AICHAT_TOKEN is not set"]),
        (
            {"PALIADIN_REMOTE_HOST": "h.example.org"},
            ["PALIADIN_SSH_PRIVATE_KEY is not set", "PALIADIN_KNOWN_HOSTS is not set"],
        ),
        (
            {**AICHAT, "AICHAT_TOKEN": "token marker", "AICHAT_PERSONA": "Hugo"},
            [
                "AICHAT_TOKEN is not printable ASCII without blanks",
                "AICHAT_PERSONA='Hugo' is not 1 to 32 of a-z, 0-9 and -",
            ],
        ),
        (
            {**AICHAT, "AICHAT_URL": "http://me:password-marker@127.0.0.1/"},
            ["AICHAT_URL is not an http or https URL without user and query"],
        ),
        (
            {
                **AICHAT,
                "AICHAT_URL": "http://a.example.org https://b.example.org http://a.example.org/",
            },
            ["AICHAT_URL names a host twice"],
        ),
        (
            {**AICHAT, "AICHAT_URL": "http://a,http://b"},
            ["AICHAT_URL='http://a,http://b' is not an http or https URL without user and query"],
        ),
        (
            {**AICHAT, "AICHAT_URL": "ftp://127.0.0.1"},
            ["AICHAT_URL='ftp://127.0.0.1' is not an http or https URL without user and query"],
        ),
        (
            {**LEGACY, "PALIADIN_REMOTE_HOST": "-oProxyCommand=id"},
            ["PALIADIN_REMOTE_HOST='-oProxyCommand=id' is not a host's name or address"],
        ),
        (
            {**LEGACY, "PALIADIN_REMOTE_USER": "-l", "PALIADIN_REMOTE_PORT": "65536"},
            [
                "PALIADIN_REMOTE_PORT='65536' is not a port, 1 to 65535",
                "PALIADIN_REMOTE_USER='-l' is not an account's name",
            ],
        ),
        (
            {**LEGACY, "PALIADIN_SESSION_PREFIX": ".", "PALIADIN_DEADLINE_S": "0.0"},
            [
                "PALIADIN_DEADLINE_S='0.0' is not seconds, 0.001 to 99999",
                "PALIADIN_SESSION_PREFIX='.' is not 1 to 55 of letters, digits, _, . and -",
            ],
        ),
        (
            {**LEGACY, "PALIADIN_LEGACY_PRIMER": "off"},
            ["PALIADIN_LEGACY_PRIMER='off' is not 0 or 1"],
        ),
    ],
)
def test_problems(environ: Mapping[str, str], problems: list[str]) -> None:
    """All that is wrong is said at once, with what would be right, and never a secret."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ(environ)
    assert list(caught.value.problems) == problems
    assert str(caught.value) == "bad_config: " + "; ".join(problems)


@given(st.integers(0, 99_999))
def test_ports(number: int) -> None:
    """A port is one that TCP has."""
    environ = {**LEGACY, "PALIADIN_REMOTE_PORT": str(number)}
    aichat = {**AICHAT, "AICHAT_URL": f"http://127.0.0.1:{number}/x"}
    if 0 < number < 65_536:
        backend = Settings.from_environ(environ).backend
        assert isinstance(backend, LegacySettings)
        assert backend.port == number
        Settings.from_environ(aichat)
    else:
        for each in (environ, aichat):
            with pytest.raises(ConfigError):
                Settings.from_environ(each)


@given(
    st.dictionaries(
        st.sampled_from([*AICHAT, *LEGACY, "PALIADIN_REMOTE_USER", "PALIADIN_DEADLINE_S"]),
        st.text(),
    )
)
def test_hostile_environment(environ: dict[str, str]) -> None:
    """Whatever the environment holds, it is settings or one error; nothing becomes an option."""
    try:
        settings = Settings.from_environ(environ)
    except ConfigError:
        return
    assert settings.deadline_s > 0
    if isinstance(settings.backend, LegacySettings):
        for name in (settings.backend.host, settings.backend.user, settings.backend.prefix):
            assert not (name or "").startswith("-")


def test_repr() -> None:
    """Settings in a log hold no secret."""
    shown = "".join(repr(Settings.from_environ(environ)) for environ in (AICHAT, LEGACY))
    assert "marker" not in shown
    assert "AAAA" not in shown
    assert "127.0.0.1" in shown
