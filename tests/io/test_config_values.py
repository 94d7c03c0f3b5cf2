"""Values of a `config.json`: which are accepted, and which are refused with their name."""

from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import flag, integer, number


def test_what_is_taken() -> None:
    values = {"size": 3, "eps": 1e-6, "whole": 2, "tied": True}
    assert integer(values, "size") == 3
    assert number(values, "eps") == 1e-6
    assert isinstance(number(values, "whole"), float)
    assert flag(values, "tied") is True
    assert flag(values, "absent") is False


@pytest.mark.parametrize(
    ("read", "refused", "wanted"),
    [
        (integer, (None, 0, -1, 2.0, "3", True), "a positive integer"),
        (number, (None, 0, -1.0, float("inf"), "1e-6", True), "a positive number"),
        (flag, (None, 1, "true"), "true or false"),
    ],
)
def test_what_is_refused(read: Any, refused: tuple[Any, ...], wanted: str) -> None:
    for value in refused:
        with pytest.raises(UserError, match=rf"'size' is .*: it must be {wanted}"):
            read({"size": value}, "size")


def test_a_key_is_named_with_the_place_of_its_object() -> None:
    for read in (integer, number):
        with pytest.raises(UserError, match=r"'rope_scaling\.factor' is missing"):
            read({}, "factor", "rope_scaling.")
