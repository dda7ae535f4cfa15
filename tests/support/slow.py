"""A set of parameters that only `make test-all` tries: others beside it try what is usual."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet


def slow(*values: Any) -> ParameterSet:  # noqa: ANN401 - of whatever types the test has
    """These values, as one set."""
    return pytest.param(*values, marks=pytest.mark.slow)
