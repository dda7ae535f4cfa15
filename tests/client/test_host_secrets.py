"""Which host's callbacks a secret is good for."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from paliadin_client.host_secrets import HostSecrets
from paliadin_contract.errors import BadSecret, BadSignature
from paliadin_contract.signature import Keys

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
BODY = b"{}"


def secret(number: int) -> str:
    # The first two are padded with one and with two equals signs.
    return "whsec_" + base64.b64encode(bytes([number]) * (26 - number % 3)).decode()


A, B, C = secret(0), secret(1), secret(2)


def accepts(secrets: list[str], host: str, *signed_with: str) -> bool:
    """Whether what is signed with these is taken from this host."""
    mine = HostSecrets(secrets)
    verification = mine.begin(Keys(signed_with).sign("push_1", BODY, NOW), NOW)
    verification.update(BODY)
    try:
        verification.finish()
        mine.check_host(verification, host)
    except BadSignature:
        return False
    return True


def test_padding() -> None:
    """The secrets of this test end in every way in which base64 ends."""
    assert [each.count("=") for each in (A, B, C)] == [1, 2, 0]


@pytest.mark.parametrize(
    ("secrets", "good", "bad"),
    [
        ([A], ["any A", "other A", " A"], ["any B"]),
        ([f"one={A}"], ["one A"], ["two A", "One A", " A", "one= A", "one B"]),
        ([f"one={A}", B], ["one A", "two B", " B"], ["one B", "two A"]),
        ([B, f"one={A}"], ["one A", "two B"], ["one B", "two A"]),
        ([f"one={A}", f"two={B}"], ["one A", "two B"], ["one B", "two A", "three A"]),
        ([f"one={A}", f"one={B}", C], ["one A", "one B", "two C"], ["one C", "two A"]),
        ([f"one={A}", f"two={A}"], ["one A", "two A"], ["three A"]),
        ([f"one={A}", A], ["one A", "two A"], ["one B"]),
        ([f"a=b={A}", f"ü={B}"], ["a=b A", "ü B"], ["a A", "b A"]),
    ],
)  # fmt: skip
def test_who_signs_for_whom(secrets: list[str], good: list[str], bad: list[str]) -> None:
    """A bound secret is good for its host alone, and another is for hosts that have none."""
    by_name = {"A": A, "B": B, "C": C}
    for each in good + bad:
        host, _, name = each.rpartition(" ")
        assert accepts(secrets, host, by_name[name]) == (each in good), each


def test_rotated_by_the_sidecar() -> None:
    """A body with several signatures is taken where one of them is good for its host."""
    assert accepts([f"one={A}"], "one", B, A)
    assert accepts([f"one={A}", B], "one", B, A)
    assert not accepts([f"one={A}", f"two={B}"], "three", B, A)


@pytest.mark.parametrize(
    "wrong", ["=" + A, "one=", "one", "one=" + A[:-8], "one=whsec_", f"one {A}", "one=x" + A]
)
def test_malformed(wrong: str) -> None:
    """What binds nothing, or no secret, is refused by its place, and never shown."""
    with pytest.raises(BadSecret, match="secret 2") as caught:
        HostSecrets([A, wrong])
    assert A[8:20] not in str(caught.value)


def test_none() -> None:
    """There must be one."""
    with pytest.raises(BadSecret, match="no secret"):
        HostSecrets([])


def test_not_shown() -> None:
    """Neither a secret nor a key stands in what a log may show."""
    assert "masked" in repr(Keys([A]))
    assert A not in repr(HostSecrets([f"one={A}"]))


def test_a_rehearsal_is_its_hosts() -> None:
    """What a host's rehearsal calls itself is proven by that host's secret, and by no other."""
    assert accepts([f"one={A}", B], "rehearsal of one", A)
    assert not accepts([f"one={A}", B], "rehearsal of one", B)
    assert accepts([f"one={A}", B], "rehearsal of two", B)
