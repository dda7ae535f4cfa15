"""The same writer for every candidate: answers of 4 KB, in the manners in which agents write.

    writer.py ROOT COUNT PAUSE_MS MANNER...

A pause is random, PAUSE_MS on average. The last line of each file holds the monotonic clock's
reading just before the system call that completes it.
"""

from __future__ import annotations

import os
import random
import sys
import time
import uuid

_PARAGRAPH = (
    "Die Frist zur Beantwortung des Bescheids läuft am **14. Dezember** ab; eine Verlängerung um "
    "zwei Monate kann schriftlich beantragt werden (§ 123 ohne Gewähr). Betroffen ist die "
    "Anmeldung mit dem Aktenzeichen 10 2026 000 000, Stand des Registers von heute morgen. "
)
_TEXT = "\n\n".join([_PARAGRAPH + _PARAGRAPH[: 40 * n] for n in range(8)])
_ANSWER = f"{_TEXT[:3900]}\n\n[paliadin-meta]\nused_tools: search\nrows_seen: 3\n"


def main() -> None:
    """Write them all."""
    root, count, pause_ms, manners = sys.argv[1], *map(float, sys.argv[2:4]), sys.argv[4:]
    os.chdir(root)
    rng = random.Random(1)
    for n in range(int(count)):
        name = f"{uuid.uuid4()}.txt"
        if manners[n % len(manners)] == "rename":
            draft = f"{name}.tmp.{os.getpid()}.{n:x}"
            _write(draft)
            os.rename(draft, name)  # noqa: PTH104 - a system call and nothing else
        else:
            _write(name)
        if pause_ms:
            time.sleep(rng.uniform(0.3, 1.7) * pause_ms / 1000)


def _write(name: str) -> None:
    file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    stamp = f"classifier_tag: fristen stamp={time.monotonic_ns():020d}\n"
    os.write(file, (_ANSWER + stamp).encode())
    os.close(file)


main()
