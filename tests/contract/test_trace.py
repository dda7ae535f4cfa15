from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from paliadin_contract.trace import safe_trace

if TYPE_CHECKING:
    from collections.abc import Callable


def raised(function: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - any of them is traced
        function()
    return caught.value


def fail(text: str = "hunter2") -> None:
    raise ValueError(text)


def fail_further() -> None:
    try:
        fail()
    except ValueError as exc:
        raise KeyError({"password": "hunter2"}) from exc


def fail_while_failing() -> None:
    try:
        fail()
    except ValueError:
        raise OSError(5, "hunter2", "/hunter2")  # noqa: B904 - the implicit context is under test


def test_trace() -> None:
    """A trace names the type and the places, innermost first, and nothing that was said."""
    (line,) = safe_trace(raised(fail))
    kind, innermost, *rest = line.split(" < ")
    assert kind == "ValueError"
    assert re.fullmatch(rf"{re.escape(__file__)}:\d+ fail", innermost)
    assert any(place.endswith(" raised") for place in rest)


def test_trace_without_places() -> None:
    """An exception that was never raised has a type all the same."""
    assert safe_trace(ValueError("hunter2")) == ["ValueError"]


def test_causes() -> None:
    """What led to it follows, whether it was said with `from` or not."""
    for function, kinds in (
        (fail_further, ["KeyError", "ValueError"]),
        (fail_while_failing, ["OSError", "ValueError"]),
    ):
        lines = safe_trace(raised(function))
        assert [line.partition(" <")[0] for line in lines] == kinds
        assert "hunter2" not in "".join(lines)


def test_groups() -> None:
    """Each exception of a group is traced, each once."""
    first, second = ValueError("hunter2"), KeyboardInterrupt("hunter2")
    second.__cause__ = first
    group = BaseExceptionGroup("hunter2", [ExceptionGroup("hunter2", [first]), second])
    lines = safe_trace(group)
    assert lines[0] == "BaseExceptionGroup"
    assert sorted(lines[1:]) == ["ExceptionGroup", "KeyboardInterrupt", "ValueError"]


def test_a_circle() -> None:
    """Exceptions that are each other's cause end the trace."""
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert safe_trace(first) == ["ValueError", "KeyError"]


def test_a_long_chain() -> None:
    """No more is shown than a person reads."""
    exc: BaseException = ValueError()
    for _ in range(100):
        following = ValueError()
        following.__cause__ = exc
        exc = following
    assert safe_trace(exc) == ["ValueError"] * 20


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    fail()


def test_a_deep_place() -> None:
    """Of a deep stack the innermost places are shown."""
    (line,) = safe_trace(raised(lambda: deep(50)))
    assert [place.rpartition(" ")[2] for place in line.split(" < ")[1:]] == ["fail"] + ["deep"] * 4
