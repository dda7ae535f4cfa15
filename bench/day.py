"""A day of many users, simulated: how many wait at once, and where. No I/O, and no clock."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from paliadin_client.hosts import rendezvous

_DAY_S = 86_400
#: How busy each hour is beside the others: an office's day, with its rest at noon.
_HOURS = (1, 1, 1, 1, 1, 2, 5, 15, 40, 60, 65, 60, 35, 50, 65, 65, 55, 40, 20, 10, 6, 4, 2, 1)
#: How long an agent is at a turn, in seconds: the median, and how far the others are from it.
MEDIAN_S, _SIGMA = 40.0, 0.8


@dataclass(frozen=True)
class Day:
    """What a day was like.

    Attributes:
        turns: how many there were.
        busiest_s: most callbacks in one second.
        busiest_hour_s: callbacks a second in the busiest hour.
        waiting: most users who waited at once.
        queued: the share of turns that queued behind another one of the same user.
        users: by host, how many users it has.
        agents: most turns that one host was at, at once; and a host on average, at that time.
    """

    turns: int
    busiest_s: int
    busiest_hour_s: float
    waiting: int
    queued: float
    users: tuple[int, ...]
    agents: tuple[int, float]


def simulate(turns: int, users: int, hosts: int, seed: int = 1) -> Day:
    """So many turns by users who are on hosts as rendezvous hashing has it, one at a time each."""
    rng = random.Random(seed)
    names = tuple(f"https://host-{number}.example.org" for number in range(hosts))
    place = {name: number for number, name in enumerate(names)}
    homes = [place[rendezvous(f"{rng.getrandbits(128):032x}", names)[0]] for _ in range(users)]
    begins = sorted(
        3600 * hour + rng.uniform(0, 3600)
        for hour in rng.choices(range(24), weights=_HOURS, k=turns)
    )
    free = [0.0] * users
    queued = 0
    ends: Counter[int] = Counter()
    #: By second, how many more or fewer are waiting, and are being answered on each host.
    waiting = [0] * (2 * _DAY_S)
    at_work: list[Counter[int]] = [Counter() for _ in names]
    for begin in begins:
        user = rng.randrange(users)
        start = max(begin, free[user])
        queued += start > begin
        end = free[user] = start + rng.lognormvariate(0.0, _SIGMA) * MEDIAN_S
        ends[int(end)] += 1
        waiting[int(begin)] += 1
        waiting[min(int(end) + 1, len(waiting) - 1)] -= 1
        at_work[homes[user]][int(start)] += 1
        at_work[homes[user]][int(end)] -= 1
    hours: Counter[int] = Counter()
    for second, count in ends.items():
        hours[second // 3600] += count
    most, when = _peak({second: more for second, more in enumerate(waiting) if more})
    peaks = [_peak(each) for each in at_work]
    return Day(
        turns=turns,
        busiest_s=max(ends.values()),
        busiest_hour_s=max(hours.values()) / 3600,
        waiting=most,
        queued=queued / turns,
        users=tuple(sorted(Counter(homes).get(host, 0) for host in range(hosts))),
        agents=(
            max(peak for peak, _ in peaks),
            sum(sum(n for second, n in each.items() if second <= when) for each in at_work) / hosts,
        ),
    )


def _peak(changes: dict[int, int]) -> tuple[int, int]:
    """The highest sum of changes, and its second."""
    level, highest, when = 0, 0, 0
    for second in sorted(changes):
        level += changes[second]
        if level > highest:
            highest, when = level, second
    return highest, when
