"""Who waits for which turn, and what they are handed."""

from __future__ import annotations

import pytest
from support.pushes import push

from paliadin_client import BadRequest
from paliadin_client.store.protocol import Found
from paliadin_client.waiting import Waiters

pytestmark = pytest.mark.anyio

TURN = "0b6f1f8e-6f0e-4b59-9a52-1d0a8a5a2a11"
OTHER = "7be1d0aa-5f0e-4c59-8a52-2d0a8a5a2a12"


async def test_shared() -> None:
    """One waits for a turn alone, and any number beside that one who share it."""
    waiters, callback = Waiters(), push(TURN).callback
    with waiters.expect(TURN) as alone, waiters.expect(TURN, shared=True) as first:
        with pytest.raises(BadRequest, match="waited for already"), waiters.expect(TURN):
            pass
        with waiters.expect(TURN, shared=True) as second:
            waiters.offer(callback)
            assert [each.push for each in (alone, first, second)] == [callback] * 3
    assert not waiters.anybody
    with waiters.expect(TURN) as again:
        assert again.push is None


async def test_early_push_of_an_alias() -> None:
    """A push that came before its second name was known is handed over when it is."""
    waiters, callback = Waiters(), push(OTHER).callback
    waiters.offer(callback)
    with waiters.expect(TURN) as waiter:
        assert waiter.push is None
        waiters.add_alias(waiter, None)
        waiters.add_alias(waiter, OTHER)
        waiters.add_alias(waiter, OTHER)
        assert waiter.push is callback
    assert not waiters.anybody


async def test_alias_of_another() -> None:
    """What one waits for alone is no alias of another."""
    waiters, callback = Waiters(), push(OTHER).callback
    with waiters.expect(OTHER) as theirs, waiters.expect(TURN) as ours:
        waiters.add_alias(ours, OTHER)
        waiters.offer(callback)
        assert (theirs.push, ours.push) == (callback, None)


async def test_alias_of_one_turn() -> None:
    """Who shares a turn has the push that names its second id as well, and nobody else has."""
    waiters, callback = Waiters(), push(OTHER).callback
    with (
        waiters.expect(TURN) as alone,
        waiters.expect(TURN, shared=True) as sharing,
        waiters.expect("third", shared=True) as third,
    ):
        for waiter in (alone, sharing, third):
            waiters.add_alias(waiter, OTHER)
        waiters.offer(callback)
        assert [each.push for each in (alone, sharing, third)] == [callback, callback, None]
    assert not waiters.anybody


async def test_found() -> None:
    """Whoever is woken by a push that was found has the reply, too."""
    waiters, callback = Waiters(), push(TURN).callback
    with waiters.expect(TURN) as waiter:
        waiters.offer_found(OTHER, Found(callback, b"not for us"))
        waiters.offer_found(TURN, Found(reply=b"reply"))
        assert (waiter.reply, waiter.changed.is_set(), waiter.arrived.is_set()) == (
            *(b"reply", True),
            False,
        )
        replies: list[bytes | None] = []
        waiter.on_push = lambda: replies.append(waiter.reply)
        waiters.offer_found(TURN, Found(callback, b"later"))
        assert replies == [b"later"]
        assert waiter.arrived.is_set()


async def test_who_lacks_a_push() -> None:
    """Only who has no push yet needs to be looked for, but for what was there before."""
    waiters = Waiters()
    begun: list[bool] = []
    waiters.on_wait.append(lambda: begun.append(waiters.anybody))
    with waiters.expect(TURN), waiters.expect(OTHER):
        assert waiters.lacking() == {TURN, OTHER}
        waiters.offer(push(TURN).callback)
        assert (waiters.lack(TURN), waiters.lacking()) == (False, {OTHER})
        assert waiters.unlooked() == []
        with waiters.expect(TURN, shared=True) as waiter:
            assert waiters.lack(TURN)
            assert [waiters.unlooked() for _ in range(2)] == [[waiter], []]
    assert begun == [True, True]


async def test_hinted() -> None:
    """A hint reaches who queues behind a turn, though nobody waits for its answer."""
    waiters = Waiters()
    with waiters.hinted(TURN) as one, waiters.hinted(TURN) as two, waiters.hinted(OTHER) as other:
        waiters.hint("anothers")
        waiters.hint(TURN)
        assert (one.is_set(), two.is_set(), other.is_set()) == (True, True, False)
        waiters.hint(None)
        assert other.is_set()
    waiters.hint(None)
    assert not waiters.anybody
