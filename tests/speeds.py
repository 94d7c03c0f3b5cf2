"""Which cases of a parametrised test run at the quick speed."""

from collections.abc import Iterable
from typing import Any

import pytest


def only_quick(cases: Iterable[Any], *quick: Any) -> list[Any]:
    """`cases` as parameters of which all but `quick`, told by their value or id, are marked as `slow`."""
    parameters = []
    for case in cases:
        if isinstance(case, type(pytest.param())):
            values, marks, name = case
        else:
            values, marks, name = (case,), (), None
        known = name in quick if name else any(values[0] is one or values[0] == one for one in quick)
        parameters.append(
            pytest.param(*values, marks=marks if known else (*marks, pytest.mark.slow), id=name)
        )
    return parameters
