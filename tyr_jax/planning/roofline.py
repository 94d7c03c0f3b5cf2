"""The least time that a stage can take on a chip: its FLOPs, bytes and collectives against published rates.

FLOPs are those of the products of matrices in a stage's program, loops counted as often as they run (XLA's
own count takes a loop's body once). What devices give each other is read off the compiled program.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from tyr_jax.planning import collectives
from tyr_jax.planning.programs import Program
from tyr_jax.runtime import devices

PASSES = 6
"""Products of bfloat16 that a TPU makes one of float32 out of, at the highest precision."""


class Chip(NamedTuple):
    """What its maker says of a chip: FLOP/s in bfloat16, bytes of memory, bytes/s of it, and bytes/s that a
    chip receives from others."""

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
    """What a stage asks of every device: FLOPs in bfloat16, bytes read and written at least, and bytes
    received from other devices, by kind of collective."""

    flops: float
    touched: float
    received: dict[str, float]

    def seconds(self, chip: Chip) -> tuple[float, float, float]:
        """The least time of each on a chip; the largest is that of the stage."""
        received = sum(self.received.values())
        return self.flops / chip.flops, self.touched / chip.bandwidth, received / chip.network


def work(stage: Program, compiled: Any) -> Work:
    """What a stage, compiled, asks of every device."""
    memory = compiled.memory_analysis()
    touched = memory.argument_size_in_bytes + memory.output_size_in_bytes
    loops = iter(stage.loops)
    total = matmul_flops(stage.traced().jaxpr.jaxpr, loops)
    return Work(total / devices.count(), touched, collectives.received_bytes(compiled.as_text(), stage.loops))


def matmul_flops(jaxpr: Any, loops: Iterator[int], platform: str = "tpu") -> float:
    """FLOPs of all products of matrices in a program on all devices, on a `platform`; those of float32 count
    several times, as a TPU makes them.

    `loops` are the iterations of its loops whose number is data, in their order. Of branches between which
    data decides, that in the middle counts.
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
            # Within, a program has only a device's part.
            times = params.get("length", 1) if name == "scan" else 1
            times *= devices.count() if name == "shard_map" else 1
            total += times * sum(matmul_flops(inner, loops, platform) for inner in _inner(params))
    return total


def _inner(params: Mapping[str, Any]) -> list[Any]:
    """The program that an equation stands for, if it is one of a program."""
    held = (params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    return [getattr(program, "jaxpr", program) for program in held][:1]


def _product_flops(equation: Any) -> float:
    """FLOPs of one product of matrices."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    size = math.prod(equation.outvars[0].aval.shape) * math.prod(left.shape[axis] for axis in contracted)
    precision = equation.params["precision"]
    exact = precision is not None and jax.lax.Precision.HIGHEST in precision
    return 2.0 * size * (PASSES if exact and left.dtype == "float32" else 1)
