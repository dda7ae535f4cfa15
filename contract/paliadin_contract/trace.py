"""Says of an unexpected exception what may be logged."""

from __future__ import annotations

import traceback


def safe_trace(exc: BaseException) -> list[str]:
    """Where an unexpected exception came from: types and places, never its text or values.

    Its text could quote what must not be logged, an answer or a token.
    """
    found: list[str] = []
    seen: set[int] = set()
    stack: list[BaseException] = [exc]
    while stack and len(seen) < 20:  # noqa: PLR2004 - enough for any cause that a person reads
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        frames = traceback.extract_tb(one.__traceback__)[-5:]
        places = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
        found.append(" < ".join([type(one).__name__, *reversed(places)]))
        if isinstance(one, BaseExceptionGroup):
            stack.extend(one.exceptions)
        stack.extend(c for c in (one.__cause__, one.__context__) if c is not None)
    return found
