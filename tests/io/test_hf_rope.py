"""Rotary embeddings in a `config.json`, in both styles."""

from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.io.hf_rope import ORIGINAL, Rotary, rope_from_hf, rope_to_hf
from tyr_jax.model.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

ROPE3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALING = Llama3Scaling(8.0, 1.0, 4.0, 64)
OLD: dict[str, Any] = {"rope_theta": 1e5, "max_position_embeddings": 256}


def test_old_and_new_keys_mean_the_same() -> None:
    assert rope_from_hf(OLD | {"rope_scaling": ROPE3}) == Rotary(1e5, SCALING)
    assert rope_from_hf({"rope_parameters": {**ROPE3, "rope_theta": 1e5}}) == Rotary(1e5, SCALING)
    assert rope_from_hf(OLD | {"rope_scaling": {"type": "default"}}) == Rotary(1e5)
    assert rope_from_hf({}) == Rotary(10000.0)


def test_the_original_context_is_the_model_s_unless_it_is_given() -> None:
    short = {key: value for key, value in ROPE3.items() if not key.startswith("original")}
    assert rope_from_hf(OLD | {"rope_scaling": short}) == Rotary(1e5, Llama3Scaling(8.0, 1.0, 4.0, 256))


def test_what_other_scalings_mean() -> None:
    linear = {"type": "linear", "factor": 4.0}
    assert rope_from_hf(OLD | {"rope_scaling": linear}) == Rotary(1e5, LinearScaling(4.0))
    yarn = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16}
    assert rope_from_hf(OLD | {"rope_scaling": yarn}) == Rotary(1e5, YarnScaling(4.0, 256, beta_fast=16.0))
    long = {"type": "su", "short_factor": [1.0, 2], "long_factor": [3.0, 4]}
    same = LongRopeScaling((1.0, 2.0), (3.0, 4.0), 64, 4.0)
    assert rope_from_hf(OLD | {"rope_scaling": long, ORIGINAL: 64}) == Rotary(1e5, same)
    partial = OLD | {"partial_rotary_factor": 0.5}
    assert rope_from_hf(partial) == Rotary(1e5, None, 0.5)
    # What `config.json` says takes the place of the family's default.
    assert rope_from_hf({"partial_rotary_factor": 1.0}, Rotary(5.0, None, 0.5)) == Rotary(5.0)


OTHERS = (
    LinearScaling(4.0),
    DynamicScaling(2.0),
    LongRopeScaling((1.0,), (2.0,), 64, 3.0, 1.5),
    YarnScaling(4.0, 64),
    YarnScaling(8.0, 32, 16.0, 2.0, 1.5, truncate=False),
)


@pytest.mark.parametrize("scaling", [None, SCALING, *OTHERS])
@pytest.mark.parametrize("style", ["rope_parameters", "rope_scaling"])
def test_what_is_written_is_read(style: str, scaling: RopeScaling | None) -> None:
    rotary = Rotary(77.0, scaling)
    written = rope_to_hf(rotary, {style: {"rope_type": "default", "rope_theta": 5.0}})
    assert style in written
    assert rope_from_hf(written | {"max_position_embeddings": 192}) == rotary


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "proportional", "factor": 4.0}}, "rope_scaling.rope_type"),
        ({"rope_scaling": {"type": "longrope", "factor": 4.0}}, "rope_scaling.short_factor"),
        ({"rope_scaling": {"type": "su", "short_factor": [1], "long_factor": [1, "x"]}}, "long_factor"),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [2]}},
            "original_max_position_embeddings",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 1}}, "rope_scaling.mscale"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": 2}}, "truncate"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling.factor"),
        ({"rope_scaling": {**ROPE3, "mscale": 1}}, "rope_scaling.mscale"),
        ({"rope_scaling": {**ROPE3, "factor": None}}, "rope_scaling.factor"),
        ({"rope_scaling": {**ROPE3, "high_freq_factor": 1.0}}, "rope_scaling.high_freq_factor"),
        ({"rope_scaling": [1]}, "rope_scaling"),
        ({"rope_scaling": ROPE3, "rope_parameters": ROPE3}, "rope_parameters"),
        ({"rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=rf"'?{named}\b"):
        rope_from_hf(OLD | changes)
