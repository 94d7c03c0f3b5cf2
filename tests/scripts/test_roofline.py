"""FLOPs compared with a count by hand, and the least time of a stage."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import roofline
import stage_programs
from roofline import CHIPS, Work
from tiny import make_tiny_config

from tyr_jax.pruning import hessian
from tyr_jax.settings import PRESETS

HIGHEST = jax.lax.Precision.HIGHEST


def flops(function: Any, *arguments: Any, loops: tuple[int, ...] = (), platform: str = "tpu") -> float:
    return roofline.matmul_flops(jax.make_jaxpr(function)(*arguments).jaxpr, iter(loops), platform)


def test_products_count_as_a_tpu_makes_them() -> None:
    a, b = jnp.ones((3, 4, 5)), jnp.ones((3, 5, 7))
    assert flops(jnp.matmul, a, b) == 2 * 3 * 4 * 5 * 7
    assert flops(lambda a, b: jnp.matmul(a, b, precision=HIGHEST), a, b) == 6 * 2 * 3 * 4 * 5 * 7
    half = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    assert flops(lambda a, b: jnp.matmul(a, b, precision=HIGHEST), *half) == 2 * 3 * 4 * 5 * 7
    assert flops(lambda a: a + a, a) == 0


def test_loops_count_as_often_as_they_run() -> None:
    square = jnp.ones((8, 8))
    once = 2 * 8**3

    def fixed(x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 5, lambda i, x: jax.lax.map(lambda row: row @ square, x), x)

    assert flops(fixed, square) == 5 * 8 * 2 * 8 * 8

    def until(x: jax.Array, end: jax.Array) -> jax.Array:
        x = jax.lax.fori_loop(0, end, lambda i, x: x @ x, x)
        return jax.lax.fori_loop(0, end, lambda i, x: x @ x @ x, x)

    assert flops(until, square, jnp.int32(0), loops=(3, 4)) == (3 + 2 * 4) * once


def test_branches() -> None:
    square, once = jnp.ones((8, 8)), 2 * 8**3

    def choose(index: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.switch(index, [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x], x)

    assert flops(choose, jnp.int32(0), square) == once

    def differ(x: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=lambda x: x @ x @ x)

    assert flops(differ, square) == 2 * once
    assert flops(differ, square, platform="cpu") == once


@pytest.mark.parametrize("name", ["ffn: residual", "ffn: statistics"])
def test_a_stage_without_loops_has_what_xla_counts(name: str) -> None:
    every = stage_programs.all_stages(make_tiny_config(hidden=64), PRESETS["quick"], jnp.dtype("float32"))
    stage = next(stage for stage in every if stage.name == name)
    compiled: Any = stage.lower().compile()
    counted = compiled.cost_analysis()["flops"]
    found = roofline.matmul_flops(stage.traced().jaxpr.jaxpr, iter(stage.loops), "cpu")
    gram = hessian.gram_flops(48, 4096) if name == "ffn: statistics" else 0
    # XᵀX is computed in the highest precision. The remaining difference is elementwise work.
    assert found - (roofline.PASSES - 1) * gram == pytest.approx(counted, rel=0.15)


def test_the_least_time_is_that_of_published_rates() -> None:
    chip = CHIPS["v5e"]
    received = {"all-gather": chip.network, "all-to-all": chip.network * 2}
    assert Work(chip.flops, chip.bandwidth / 2, received).seconds(chip) == (1, 0.5, 3)


def test_a_device_has_its_part() -> None:
    every = stage_programs.all_stages(make_tiny_config(), PRESETS["quick"], jnp.dtype("float32"))
    stage = next(stage for stage in every if stage.name == "ffn: residual")
    memory = types.SimpleNamespace(argument_size_in_bytes=100, output_size_in_bytes=20)
    program = "ENTRY %main (x: f32[8]) -> f32[64] {\n  ROOT %y = f32[64]{0} all-gather(%x), dimensions={0}\n}"
    compiled = types.SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: program)
    found = roofline.work(stage, compiled)
    assert (found.touched, found.received) == (120, {"all-gather": 256})
    assert found.flops == roofline.matmul_flops(stage.traced().jaxpr.jaxpr, iter(()))
