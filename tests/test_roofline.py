"""FLOPs and collectives, counted by hand beside."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from tiny import make_tiny_config

from tyr_jax import config, roofline, stages
from tyr_jax.pruning import hessian
from tyr_jax.roofline import CHIPS, Work

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
    every = stages.all_stages(make_tiny_config(hidden=64), config.PRESETS["quick"], jnp.dtype("float32"))
    stage = next(stage for stage in every if stage.name == name)
    compiled: Any = stage.lower().compile()
    counted = compiled.cost_analysis()["flops"]
    found = roofline.matmul_flops(stage.traced().jaxpr.jaxpr, iter(stage.loops), "cpu")
    gram = hessian.gram_flops(48, 4096) if name == "ffn: statistics" else 0
    # XᵀX is of the highest precision. Elementwise work is what is left.
    assert found - (roofline.PASSES - 1) * gram == pytest.approx(counted, rel=0.15)


PROGRAM = """
%body.1 (x: f32[8]) -> f32[8] {
  %all-gather.2 = bf16[4,8]{1,0} all-gather(%x), channel_id=2, dimensions={0}
  ROOT %fusion.1 = f32[8]{0} fusion(%all-gather.2), kind=kLoop, calls=%inner.1
}

%inner.1 (y: bf16[4,8]) -> f32[8] {
  ROOT %all-reduce.3 = f32[8]{0} all-reduce(%y), channel_id=3, to_apply=%sum.1
}

%start.1 (x: f32[8]) -> f32[64] {
  ROOT %all-gather.7 = f32[64]{0} all-gather(%x), channel_id=5, dimensions={0}
}

%other.1 (x: f32[8]) -> f32[8] {
  %all-to-all.1 = f32[8]{0} all-to-all(%x), dimensions={0}
  ROOT %u = f32[8]{0} while(%all-to-all.1), condition=%c.3, body=%third.1
}

%third.1 (x: f32[8]) -> f32[8] {
  ROOT %all-to-all.2 = f32[8]{0} all-to-all(%x), dimensions={0}
}

%c.1 (x: f32[8]) -> pred[] {
  ROOT %less.1 = pred[] fusion(%x), kind=kLoop, calls=%sum.1
}

%c.2 (x: f32[8]) -> pred[] {
  %limit = s32[] fusion(%x), kind=kLoop, calls=%sum.1
  ROOT %lt.1 = pred[] compare(%count, %limit), direction=LT
}

%c.3 (x: f32[8]) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(6)
  ROOT %lt.2 = pred[]{:T(512)} compare(%count, %constant.1), direction=LT
}

ENTRY %main.1 (x: f32[8]) -> f32[8] {
  %a = f32[64]{0} fusion(%x), kind=kLoop, calls=%start.1
  %all-gather.8 = f32[64]{0} all-gather(%x), channel_id=5, dimensions={0}
  %w = f32[8]{0} while(%x), condition=%c.1, body=%body.1, backend_config={"known_trip_count":{"n":"10"}}
  %v = f32[8]{0} while(%w), condition=%c.2, body=%other.1
  ROOT %z = f32[8]{0} while(%v), condition=%c.2, body=%last.1
}

%last.1 (x: f32[8]) -> f32[8] {
  ROOT %all-to-all.3 = f32[16]{0} all-to-all(%x), dimensions={0}
}
"""


def test_collectives_count_as_often_as_they_run() -> None:
    # Ten times 64 and 32 bytes; one gather in two parts; two loops of which only the data knows, and within
    # the first of them six times as many, by the condition.
    expected = 10 * (64 + 32) + 256 + 7 * (32 + 6 * 32) + 3 * 64
    assert roofline.received_bytes(PROGRAM, (7, 3)) == expected


def test_every_loop_of_which_only_the_data_knows_is_to_be_told_of() -> None:
    with pytest.raises(ValueError, match="more loops"):
        roofline.received_bytes(PROGRAM, (7,))


def test_the_least_time_is_that_of_published_rates() -> None:
    chip = CHIPS["v5e"]
    assert Work(chip.flops, chip.bandwidth / 2, chip.network * 3).seconds(chip) == (1, 0.5, 3)


def test_a_device_has_its_part() -> None:
    every = stages.all_stages(make_tiny_config(), config.PRESETS["quick"], jnp.dtype("float32"))
    stage = next(stage for stage in every if stage.name == "ffn: residual")._replace(loops=(1, 1))
    memory = types.SimpleNamespace(argument_size_in_bytes=100, output_size_in_bytes=20)
    compiled = types.SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: PROGRAM)
    found = roofline.work(stage, compiled)
    assert found.touched == 120
    assert found.flops == roofline.matmul_flops(stage.traced().jaxpr.jaxpr, iter(()))
