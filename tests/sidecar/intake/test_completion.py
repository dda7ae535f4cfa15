from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from paliadin_sidecar.intake.completion import (
    Failed,
    Progress,
    Settled,
    Verdict,
    Waiting,
    decide,
)
from paliadin_sidecar.intake.fingerprint import FileSnapshot, Fingerprint

QUIET_S, MAX_BYTES = 5.0, 1000
#: Of the rule itself: as it is promised, not as it is written in the code.
EMPTY_S, LINKS_S, STALLED_S, HELD_S = 600.0, 5.0, 120.0, 120.0
#: Far from zero, so that an absolute time in the code would show; whole, so that sums are exact.
T = 4096.0
#: Of three contents.
A, B, C = (Fingerprint(7, 100, at, at, 1000, 0o100600, 1) for at in (1, 2, 3))


def snapshot(
    *, fingerprint: Fingerprint = A, size: int = 100, names: int = 1, **what: bool | None
) -> FileSnapshot:
    """Complete, unless said otherwise."""
    whole = FileSnapshot(A, trusted=True, ended=True, has_text=True)
    return replace(whole, fingerprint=fingerprint._replace(size=size, names=names), **what)


WHOLE = snapshot()
UNENDED = snapshot(ended=False)
WRITTEN = snapshot(being_written=True)
EMPTY = snapshot(ended=False, has_text=False, size=0)
LINKED = snapshot(names=2)


def verdicts(*looks: tuple[float, FileSnapshot], quiet_s: float = QUIET_S) -> list[Verdict]:
    """What each of these looks led to, at seconds after the first."""
    progress: Progress | None = None
    found = []
    for at, seen in looks:
        progress, verdict = decide(progress, seen, T + at, quiet_s=quiet_s, max_bytes=MAX_BYTES)
        found.append(verdict)
    return found


def last(*looks: tuple[float, FileSnapshot]) -> Verdict:
    return verdicts(*looks)[-1]


def test_whole() -> None:
    """A file with its whole trailer and no writer is complete at the first look."""
    assert last((0, WHOLE)) == Settled()


@pytest.mark.parametrize("seen", [WHOLE, UNENDED, WRITTEN, EMPTY, LINKED, snapshot(size=9999)])
def test_untrusted(seen: FileSnapshot) -> None:
    """What is no regular file of the owner's has failed, whatever else it is."""
    assert last((0, replace(seen, trusted=False))) == Failed("untrusted")
    assert last((0, seen), (1, replace(seen, trusted=False))) == Failed("untrusted")


# --- open for writing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen", [UNENDED, EMPTY, snapshot(has_text=False), snapshot(ended=False, names=2)]
)
def test_a_writer_is_awaited(seen: FileSnapshot) -> None:
    """What has not ended is not judged while somebody has it open, however long that lasts."""
    written = replace(seen, being_written=True)
    waits = Waiting(1, stalled=True, polls=True)
    assert last((0, written), (10 * EMPTY_S, written)) == waits


def test_a_whole_answer_that_stays_open() -> None:
    """An answer with a whole trailer that is unchanged for two minutes is complete all the same."""
    waits = Waiting(1, stalled=True, polls=True)
    assert last((0, WRITTEN), (HELD_S - 0.5, WRITTEN)) == Waiting(0.008, polls=True)
    assert last((0, WRITTEN), (HELD_S, WRITTEN)) == Settled()
    changed = replace(WRITTEN, fingerprint=B)
    assert verdicts((0, WRITTEN), (9, changed), (HELD_S, changed), (HELD_S + 9, changed))[2:] == [
        waits,
        Settled(),
    ]
    large = snapshot(being_written=True, size=MAX_BYTES + 1)
    assert last((0, large), (HELD_S, large)) == Failed("too_large")


def test_a_writer_that_closes() -> None:
    """Once nobody writes, a file that has ended is complete at the next look."""
    assert last((0, WRITTEN), (9, WHOLE)) == Settled()


def test_a_writer_is_polled_less_often() -> None:
    """A writer's close is looked for soon, then twice as late each time, up to a bound."""
    looks = [(float(n), WRITTEN) for n in range(6)]
    seconds = [v.seconds for v in verdicts(*looks) if isinstance(v, Waiting)]
    assert seconds == [0.004, 0.008, 0.016, 0.032, 0.032, 0.032]


def test_a_writer_that_writes_is_polled_soon_again() -> None:
    """Each change begins the polling anew: the end is near where something moves."""
    looks = [(float(n), WRITTEN) for n in range(5)]
    assert last(*looks, (5, replace(WRITTEN, fingerprint=B))) == Waiting(0.004, polls=True)


@pytest.mark.parametrize(
    ("after_s", "stalled"), [(STALLED_S - 0.5, False), (STALLED_S, True), (STALLED_S + 0.5, True)]
)
def test_stalled(after_s: float, *, stalled: bool) -> None:
    """A file that stays open for two minutes is reported, also when it grows meanwhile."""
    unended = replace(WRITTEN, ended=False)
    grown = replace(WRITTEN, fingerprint=B)
    for verdict in (
        last((0, unended), (after_s, unended)),
        last((0, WRITTEN), (after_s, grown)),
    ):
        assert isinstance(verdict, Waiting)
        assert verdict.stalled is stalled
        assert (verdict.seconds == 1) is stalled  # who is that late is not in a hurry


# --- no end mark, or no lease ---------------------------------------------------------------

quiet_matters = pytest.mark.parametrize(
    "seen",
    [UNENDED, snapshot(being_written=None), snapshot(being_written=None, ended=False)],
    ids=["no trailer", "no lease", "neither"],
)


@quiet_matters
def test_quiet(seen: FileSnapshot) -> None:
    """Without an end mark, or where leases are refused, a file must rest for `quiet_s`."""
    assert verdicts((0, seen), (1, seen), (4.5, seen), (5, seen)) == [
        Waiting(5),
        Waiting(4),
        Waiting(0.5),
        Settled(),
    ]


@quiet_matters
def test_a_change_ends_the_quiet(seen: FileSnapshot) -> None:
    """Each change begins the rest anew."""
    changed = replace(seen, fingerprint=B)
    assert verdicts((0, seen), (4.5, changed), (9, changed), (9.5, changed)) == [
        Waiting(5),
        Waiting(5),
        Waiting(0.5),
        Settled(),
    ]


def test_a_trailer_ends_the_quiet() -> None:
    """The trailer that a second process appends ends the wait at once."""
    assert last((0, UNENDED), (1, replace(WHOLE, fingerprint=B))) == Settled()


def test_no_quiet() -> None:
    """With `quiet_s` zero a closed file is complete at the first look."""
    assert verdicts((0, UNENDED), quiet_s=0) == [Settled()]


# --- no text --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, MAX_BYTES + 1])
def test_empty(size: int) -> None:
    """A file without any text is awaited for ten minutes, and then has failed."""
    seen = snapshot(ended=False, has_text=False, size=size)
    assert verdicts((0, seen), (EMPTY_S - 1, seen), (EMPTY_S, seen)) == [
        Waiting(EMPTY_S),
        Waiting(1),
        Failed("empty"),
    ]


def test_a_bare_trailer() -> None:
    """A trailer without text has ended: it settles at once, for the audit."""
    assert last((0, snapshot(has_text=False))) == Settled()
    assert last((0, EMPTY), (1, snapshot(has_text=False, fingerprint=B))) == Settled()


def test_a_bare_trailer_without_lease() -> None:
    """Where leases are refused, a bare trailer must rest like any other file."""
    bare = snapshot(has_text=False, being_written=None)
    assert verdicts((0, bare), (5, bare)) == [Waiting(5), Settled()]


def test_empty_at_first() -> None:
    """A file that was empty is an answer as soon as it has text and an end."""
    assert last((0, EMPTY), (300, replace(WHOLE, fingerprint=B))) == Settled()


def test_empty_and_open() -> None:
    """An empty file that somebody has open has not failed."""
    verdict = last((0, EMPTY), (2 * EMPTY_S, replace(EMPTY, being_written=True)))
    assert isinstance(verdict, Waiting)


# --- size and links -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "verdict"),
    [(MAX_BYTES, Settled()), (MAX_BYTES + 1, Failed("too_large"))],
)
def test_size(size: int, verdict: Verdict) -> None:
    """A file is too large from one byte over the limit."""
    assert last((0, snapshot(size=size))) == verdict


def test_size_is_judged_last() -> None:
    """A large file without an end has failed only once it rests: it may yet be rewritten."""
    large = snapshot(size=MAX_BYTES + 1, ended=False)
    assert verdicts((0, large), (5, large)) == [Waiting(5), Failed("too_large")]
    assert last((0, large), (1, replace(WHOLE, fingerprint=B))) == Settled()


def test_links() -> None:
    """A second name is awaited for five seconds, and then the file has failed."""
    assert verdicts((0, LINKED), (LINKS_S - 1, LINKED), (LINKS_S, LINKED)) == [
        Waiting(LINKS_S),
        Waiting(1),
        Failed("untrusted"),
    ]


@pytest.mark.parametrize("names", [0, 1])
def test_links_that_went(names: int) -> None:
    """A file whose other name went is complete; so is one that has lost all its names."""
    assert last((0, LINKED), (LINKS_S - 1, snapshot(names=names))) == Settled()


def test_links_that_came_back() -> None:
    """Only names in a row count: a second one that went and came is awaited anew."""
    unended = replace(LINKED, ended=False)
    looks = [(0.0, unended), (3.0, UNENDED), (4.0, unended)]
    assert verdicts(*looks, (8, unended), (9, unended))[3:] == [Waiting(1), Failed("untrusted")]


# --- whatever is seen -----------------------------------------------------------------------

looks = st.builds(
    snapshot,
    fingerprint=st.sampled_from([A, B, C]),
    trusted=st.booleans(),
    being_written=st.sampled_from([True, False, None]),
    ended=st.booleans(),
    has_text=st.booleans(),
    size=st.sampled_from([0, 1, MAX_BYTES, MAX_BYTES + 1]),
    names=st.integers(0, 3),
)
#: Quarters of a second, so that sums are exact.
gaps = st.integers(0, 4000).map(lambda n: n / 4)
histories = st.lists(st.tuples(gaps, looks), min_size=1, max_size=8)


def after(history: list[tuple[float, FileSnapshot]]) -> tuple[Progress | None, float, Verdict]:
    progress: Progress | None = None
    verdict: Verdict = Settled()
    now = T
    for gap, seen in history:
        now += gap
        progress, verdict = decide(progress, seen, now, quiet_s=QUIET_S, max_bytes=MAX_BYTES)
    return progress, now, verdict


def rested_s(history: list[tuple[float, FileSnapshot]]) -> float:
    """For how long the last look's fingerprint was the same."""
    seconds = 0.0
    for (gap, seen), (_, before) in zip(history[:0:-1], history[-2::-1], strict=True):
        if seen.fingerprint.content_may_differ(before.fingerprint):
            break
        seconds += gap
    return seconds


@given(histories)
def test_never_half_an_answer(history: list[tuple[float, FileSnapshot]]) -> None:
    """Whatever came before, what settles is trusted, closed, not too large and no mere nothing.

    One that is open has a whole trailer, and was unchanged for long.
    """
    _, _, verdict = after(history)
    seen = history[-1][1]
    if verdict == Settled():
        assert seen.trusted
        if seen.being_written:
            assert seen.ended
            assert seen.has_text
            assert rested_s(history) >= HELD_S
        assert seen.has_text or seen.ended
        assert seen.fingerprint.size <= MAX_BYTES
        assert seen.fingerprint.names <= 1


@given(histories)
def test_never_settled_at_once_without_an_end(history: list[tuple[float, FileSnapshot]]) -> None:
    """A change settles at its first look only with a trailer and the proof that it is closed."""
    before = history[-2][1].fingerprint if len(history) > 1 else None
    seen = history[-1][1]
    if seen.fingerprint != before and not (seen.ended and seen.being_written is False):
        assert after(history)[2] != Settled()


@given(histories, gaps)
def test_monotone(history: list[tuple[float, FileSnapshot]], gap: float) -> None:
    """A verdict stands for as long as the file rests: time alone never takes it back."""
    progress, now, verdict = after(history)
    if not isinstance(verdict, Waiting):
        seen = history[-1][1]
        assert decide(progress, seen, now + gap, quiet_s=QUIET_S, max_bytes=MAX_BYTES)[1] == verdict


@given(histories)
def test_every_wait_ends(history: list[tuple[float, FileSnapshot]]) -> None:
    """A file that rests and is closed gets its verdict after the seconds of the one before."""
    progress, now, verdict = after(history)
    seen = history[-1][1]
    if isinstance(verdict, Waiting):
        assert 0 < verdict.seconds <= EMPTY_S
        if not seen.being_written:
            # A second name may be met only when all else is well: two waits at most.
            for _ in range(2):
                if isinstance(verdict, Waiting):
                    now += verdict.seconds
                    progress, verdict = decide(
                        progress, seen, now, quiet_s=QUIET_S, max_bytes=MAX_BYTES
                    )
            assert not isinstance(verdict, Waiting)
