"""What every stage of a large model's run takes on TPUs, from their compiler, without a TPU. Rerun:

  pip install libtpu && TPU_SKIP_MDS_QUERY=1 python scripts/bench_tpu.py --topology v5e:2x4

A row per stage: seconds to compile; what a device holds of its arguments and what it needs besides; the least
milliseconds that its FLOPs, its bytes and what it receives from other devices take by the chip's published
rates; and the largest array that a collective gathers: of a layer's weights, never of all layers'. It fails
where a stage takes longer to compile, or more memory, than it may.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from large_models import MODELS, tpu_mesh
from markdown_table import print_header, print_row

from tyr_jax import collectives, roofline, stages
from tyr_jax.config import PRESETS, Preset


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to compile."""

    topology: str = "v5e:2x4"
    """TPUs, as their compiler calls them."""
    devices: int | None = None
    """How many of them; all, where it is not said."""
    model: str = "llama-3.1-8b"
    """Shapes of the model."""
    preset: Preset = "standard"
    """Sizes of the text, and the search's schedule."""
    sparsity: float = 0.5
    """Target."""
    most_seconds: float = 120
    """What a stage may take to compile."""
    only: tuple[str, ...] = ()
    """Stages whose name has one of these in it; all where none is given."""


def main(bench: Bench) -> None:
    """Print a row per stage."""
    settings = dataclasses.replace(PRESETS[bench.preset], sparsity=(bench.sparsity,))
    chip = roofline.CHIPS[bench.topology.split(":")[0]]
    columns = "compiles in, s", "arguments, GB", "besides, GB", "FLOPs, ms", "memory, ms", "network, ms"
    print_header("stage", *columns, "largest collective")
    failed = []
    with jax.set_mesh(tpu_mesh(bench.topology, bench.devices)):
        for stage in stages.all_stages(MODELS[bench.model], settings, jnp.dtype("bfloat16")):
            if bench.only and not any(name in stage.name for name in bench.only):
                continue
            start = time.perf_counter()
            compiled: Any = stage.lower().compile()
            seconds = time.perf_counter() - start
            memory = compiled.memory_analysis()
            besides = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
            sizes = memory.argument_size_in_bytes, besides
            _, largest = collectives.largest_collective(compiled.as_text())
            times = roofline.work(stage, compiled).seconds(chip)
            cells = *(f"{size / 1e9:.2f}" for size in sizes), *(f"{1e3 * time:.2f}" for time in times)
            print_row(stage.name, f"{seconds:.0f}", *cells, largest)
            if seconds > bench.most_seconds or sum(sizes) > chip.memory:
                failed.append(stage.name)
    if failed:
        raise SystemExit(f"too slow to compile, or too large for {bench.topology}: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
