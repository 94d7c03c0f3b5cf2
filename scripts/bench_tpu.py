"""What each stage of a large model's run needs on TPUs, by the TPU compiler, without a TPU. Usage:

  pip install '.[tpu]' && TPU_SKIP_MDS_QUERY=1 python scripts/bench_tpu.py --topology v5e:2x4

It prints a row per stage, with figures per device:
- seconds to compile;
- memory of its arguments ("given"), and what it needs besides;
- its FLOPs; products in float32 count as the bfloat16 products that the chip makes of them;
- the least milliseconds that FLOPs, memory and network take at the chip's published rates;
- what it receives from other devices, by kind of collective;
- the collective with the largest array: a matrix of one layer's weights, the head, or a part of a Hessian,
  but never the weights of all layers or levels.

It fails if a stage takes too long to compile, needs too much memory, or receives too large an array.
"""

import dataclasses
import time
from typing import Any

import collectives
import jax
import jax.numpy as jnp
import roofline
import stage_programs
import tyro
from large_models import OnTpus
from markdown_table import print_header, print_row

from tyr_jax.model.spec import ModelConfig
from tyr_jax.planning.load import FLOAT, site_sizes
from tyr_jax.pruning import linalg
from tyr_jax.runtime import devices


@dataclasses.dataclass(frozen=True)
class Bench(OnTpus):
    """What to compile."""

    topology: str = "v5e:2x4"
    """The TPUs, by the compiler's name for them."""
    most_seconds: float = 120
    """Seconds that a stage may take to compile."""
    only: tuple[str, ...] = ()
    """Compile only stages whose name contains one of these; by default, all stages."""


def most_given(name: str, by: str, config: ModelConfig, itemsize: int) -> float:
    """Bytes of the largest array that stage `name` may give a device, `by` a collective.

    Of the weights, this is a matrix of a layer, or the head. Of a site's Hessian, it is the device's own
    part, or a block of rows.
    """
    size = site_sizes(config)[1]
    head = config.vocab * config.hidden if name.startswith(("search", "quality")) else 0
    # With many chips, or chips in three dimensions, the compiler turns reduce-scatters into all-reduces.
    scattered = name.endswith("XᵀX") and by.startswith("all-reduce")
    hessian = size * (size if scattered else max(size / devices.count(), linalg.BLOCK))
    return max(itemsize * max(size * config.hidden, head), FLOAT * hessian)


def main(bench: Bench) -> None:
    """Print a row per stage."""
    settings = bench.settings()
    chip = roofline.CHIPS[bench.topology.split(":")[0]]
    amounts = "given, GB", "besides, GB", "TFLOP"
    least = "FLOPs, ms", "memory, ms", "network, ms"
    print_header("stage", "compiles in, s", *amounts, *least, "received, GB", "largest collective")
    failed = []
    config, dtype = bench.config(), jnp.dtype("bfloat16")
    with jax.set_mesh(bench.mesh()):
        for stage in stage_programs.all_stages(config, settings, dtype):
            if bench.only and not any(name in stage.name for name in bench.only):
                continue
            start = time.perf_counter()
            compiled: Any = stage.lower().compile()
            seconds = time.perf_counter() - start
            memory = compiled.memory_analysis()
            besides = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            sizes = memory.argument_size_in_bytes, besides
            given, largest = collectives.largest_collective(compiled.as_text())
            work = roofline.work(stage, compiled)
            counts = *(size / 1e9 for size in sizes), work.flops / 1e12
            cells = (f"{value:.2f}" for value in (*counts, *(1e3 * time for time in work.seconds(chip))))
            received = (f"{kind} {size / 1e9:.2f}" for kind, size in sorted(work.received.items()))
            print_row(stage.name, f"{seconds:.0f}", *cells, ", ".join(received) or "none", largest)
            limits = {
                "too slow to compile": seconds > bench.most_seconds,
                "too large for a device": sum(sizes) > chip.memory,
                "gives a device too much": given > most_given(stage.name, largest, config, dtype.itemsize),
            }
            failed += [f"{stage.name}: {what}" for what, exceeded in limits.items() if exceeded]
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
