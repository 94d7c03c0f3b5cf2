"""The least time that a stage can take on a chip: its FLOPs, bytes and collectives against published rates.

FLOPs are those of the matrix products in a stage's program, with loops counted as often as they run (XLA's
own count takes a loop's body once). What devices send each other is read from the compiled program.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import collectives
import jax
from stage_programs import Program

from tyr_jax.runtime import devices

PASSES = 6
"""bfloat16 products that a TPU computes for one float32 product at the highest precision."""


class Chip(NamedTuple):
    """A chip's published figures: FLOP/s in bfloat16, bytes of memory, bytes/s from memory, and bytes/s that
    it receives from other chips."""

    flops: float
    memory: float
    bandwidth: float
    network: float


CHIPS = {
    "v4": Chip(275e12, 32e9, 1228e9, 300e9),
    "v5e": Chip(197e12, 16e9, 819e9, 200e9),
    "v5p": Chip(459e12, 95e9, 2765e9, 600e9),
    "v6e": Chip(918e12, 32e9, 1640e9, 400e9),
}
"""Google's TPUs."""


class Work(NamedTuple):
    """What a stage asks of every device: FLOPs in bfloat16, the least bytes read and written, and bytes
    received from other devices, by kind of collective."""

    flops: float
    touched: float
    received: dict[str, float]

    def seconds(self, chip: Chip) -> tuple[float, float, float]:
        """The least time that each of the three takes on a chip. The largest is that of the stage."""
        received = sum(self.received.values())
        return self.flops / chip.flops, self.touched / chip.bandwidth, received / chip.network


def work(stage: Program, compiled: Any) -> Work:
    """What a compiled stage asks of every device."""
    memory = compiled.memory_analysis()
    touched = memory.argument_size_in_bytes + memory.output_size_in_bytes
    loops = iter(stage.loops)
    total = matmul_flops(stage.traced().jaxpr.jaxpr, loops)
    return Work(total / devices.count(), touched, collectives.received_bytes(compiled.as_text(), stage.loops))


def matmul_flops(jaxpr: Any, loops: Iterator[int], platform: str = "tpu") -> float:
    """FLOPs of all matrix products in a program on all devices, on a `platform`. Those of float32 at the
    highest precision count `PASSES` times, as on a TPU.

    `loops` are the trip counts, in program order, of the loops whose trip count depends on data. Of branches
    that data chooses between, the middle one counts.
    """
    total = 0.0
    choices: dict[int, int] = {}
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product_flops(equation)
        elif name == "platform_index":
            named = [platform in (group or (platform,)) for group in params["platforms"]]
            choices[id(equation.outvars[0])] = named.index(True)
        elif name == "cond":
            branches = params["branches"]
            index = choices.get(id(equation.invars[0]), len(branches) // 2)
            total += matmul_flops(branches[index].jaxpr, loops, platform)
        elif name == "while":
            total += next(loops) * matmul_flops(params["body_jaxpr"].jaxpr, loops, platform)
        else:
            # Inside `shard_map`, a program has only one device's part.
            times = params.get("length", 1) if name == "scan" else 1
            times *= devices.count() if name == "shard_map" else 1
            total += times * sum(matmul_flops(inner, loops, platform) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """The program inside an equation, in a list that is empty if there is none."""
    held = (params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return [getattr(program, "jaxpr", program) for program in held][:1]


def _product_flops(equation: Any) -> float:
    """FLOPs of one matrix product."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    size = math.prod(equation.outvars[0].aval.shape) * math.prod(left.shape[axis] for axis in contracted)
    precision = equation.params["precision"]
    exact = precision is not None and jax.lax.Precision.HIGHEST in precision
    return 2.0 * size * (PASSES if exact and left.dtype == "float32" else 1)
