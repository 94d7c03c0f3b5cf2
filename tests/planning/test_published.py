"""Published models of every family: sizes, plans, and programs for accelerators that are not here."""

import dataclasses
import math
import runpy
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from speeds import only_quick

from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model import decoder
from tyr_jax.model.families import BUILT_IN
from tyr_jax.model.tensors import build_params, count_parameters
from tyr_jax.planning import plan
from tyr_jax.planning.load import Load
from tyr_jax.settings import PRESETS

SCRIPTS = Path(__file__).parents[2] / "scripts"
PUBLISHED: dict[str, tuple[dict[str, Any], int]] = runpy.run_path(str(SCRIPTS / "published_models.py"))[
    "PUBLISHED"
]
HALF = dataclasses.replace(PRESETS["standard"], sparsity=(0.5,))


def test_every_family_has_one() -> None:
    assert {values["model_type"] for values, _ in PUBLISHED.values()} == {one.model_type for one in BUILT_IN}


@pytest.mark.parametrize("name", only_quick(PUBLISHED, "Llama-3.2-1B", "gemma-3-1b-pt", "Qwen3-30B-A3B"))
def test_sizes_and_plans(name: str) -> None:
    values, parameters = PUBLISHED[name]
    config = config_from_hf(values)
    assert count_parameters(config)[1] == parameters
    for need, times in plan.needs(Load(config, HALF, 2, 8)):
        assert times > 0
        assert math.isfinite(need.flops)
        assert math.isfinite(need.memory)
        # Eight devices share the weights.
        assert need.weights >= 2 * parameters / 8


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", {values["model_type"]: name for name, (values, _) in PUBLISHED.items()}.values()
)
def test_the_forward_pass_lowers_for_every_platform(name: str) -> None:
    config = config_from_hf(PUBLISHED[name][0])
    params = jax.eval_shape(
        lambda: build_params(config, lambda spec: jnp.zeros(spec.shape, jnp.bfloat16)),
    )
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
    traced = decoder.hidden_states.trace(params, tokens, config)
    for platform in ("tpu", "rocm", "cuda", "cpu"):
        assert "stablehlo" in traced.lower(lowering_platforms=(platform,)).as_text()
