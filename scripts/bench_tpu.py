"""What every stage of a large model's run takes on TPUs, from their compiler, without a TPU. Rerun:

  pip install '.[tpu]' && TPU_SKIP_MDS_QUERY=1 python scripts/bench_tpu.py --topology v5e:2x4

A row per stage: seconds to compile; what a device holds of its arguments and what it needs besides; its FLOPs
(those of float32 as the chip makes them of bfloat16); the least milliseconds that FLOPs, memory and network
take by the chip's published rates; what it receives from other devices, by kind of collective, and the
largest array among that: a matrix of a layer's weights, never those of all layers or levels. It fails where a
stage takes longer to compile, or more memory, or is given more, than it may.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from large_models import OnTpus
from markdown_table import print_header, print_row

from tyr_jax.model.spec import ModelConfig
from tyr_jax.planning import collectives, plan, programs, roofline
from tyr_jax.pruning import linalg
from tyr_jax.runtime import devices


@dataclasses.dataclass(frozen=True)
class Bench(OnTpus):
    """What to compile."""

    topology: str = "v5e:2x4"
    """TPUs, as their compiler calls them."""
    most_seconds: float = 120
    """What a stage may take to compile."""
    only: tuple[str, ...] = ()
    """Stages whose name has one of these in it; all where none is given."""


def most_given(name: str, by: str, config: ModelConfig, itemsize: int) -> float:
    """Bytes of the largest array that a stage may give a device, `by` a collective: of weights a matrix of a
    layer, or the head; of a site's Hessian its own part, or a block of rows."""
    size = plan.site_sizes(config)[1]
    head = config.vocab * config.hidden if name.startswith(("search", "quality")) else 0
    # Where chips are many, or lie in three dimensions, the compiler scatters sums by adding up all of them.
    scattered = name.endswith("XᵀX") and by.startswith("all-reduce")
    hessian = size * (size if scattered else max(size / devices.count(), linalg.BLOCK))
    return max(itemsize * max(size * config.hidden, head), plan.FLOAT * hessian)


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
        for stage in programs.all_stages(config, settings, dtype):
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
