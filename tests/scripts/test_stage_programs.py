"""Every jitted stage lowers for every platform, even without a device of that platform."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
import stage_programs

from tyr_jax.model.spec import ModelConfig
from tyr_jax.scoring.objective import HiddenKL
from tyr_jax.settings import PRESETS

PLATFORMS = "cpu", "cuda", "rocm", "tpu"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_stage_lowers_for_every_platform(dtype: str, tiny_config: Callable[..., ModelConfig]) -> None:
    settings = dataclasses.replace(PRESETS["quick"], sparsity=(0.5,), objective=HiddenKL())
    found = stage_programs.all_stages(tiny_config(qkv_bias=True, mlp_bias=True), settings, jnp.dtype(dtype))
    names = [stage.name for stage in found]
    assert len(set(names)) == len(names) >= 14
    for stage in found:
        assert "func.func public @main" in stage.lower(*PLATFORMS).as_text(), stage.name


def test_no_array_is_made_where_devices_need_not_be_there(tiny_config: Callable[..., ModelConfig]) -> None:
    settings = dataclasses.replace(PRESETS["quick"], sparsity=(0.5,))
    with jax.transfer_guard("disallow_explicit"):
        assert stage_programs.all_stages(tiny_config(), settings, jnp.dtype("float32"))
