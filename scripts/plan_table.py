"""What runs of large models need according to their plans, on 1, 4, 8, 16 and 32 devices. Usage:

  python scripts/plan_table.py

It prints the peak memory of each device, without and with weights on disk (`--offload`). Then, without
`--offload`, it prints host memory in addition to what devices hold, and disk space while the run lasts. The
minutes assume that a device reaches 100 TFLOP/s.
"""

import dataclasses

import tyro
from large_models import MODELS
from markdown_table import print_header, print_row

from tyr_jax.model.spec import ModelConfig
from tyr_jax.planning import plan
from tyr_jax.planning.load import Load
from tyr_jax.settings import PRESETS, Preset, Settings

ITEMSIZE = 2
"""Bytes of a weight and of an activation, in bfloat16."""


@dataclasses.dataclass(frozen=True)
class Table:
    """What to plan."""

    devices: tuple[int, ...] = (1, 4, 8, 16, 32)
    """Numbers of devices."""
    preset: Preset = "standard"
    """Preset for the sizes of the text and the schedule of the search."""
    sparsity: float = 0.5
    """Target."""
    flops: float = 1e14
    """FLOPs per second that a device reaches."""


def most_memory(config: ModelConfig, settings: Settings, n: int) -> float:
    """Peak bytes of each of `n` devices."""
    return max(need.memory for need, _ in plan.needs(Load(config, settings, ITEMSIZE, n)))


def main(table: Table) -> None:
    """Print a row per model and number of devices."""
    settings = dataclasses.replace(PRESETS[table.preset], sparsity=(table.sparsity,))
    real = dataclasses.replace(settings.data, calibration=("builtin",))
    disk = dataclasses.replace(settings, offload=True, data=real)
    memory = "memory, GB", "with `--offload`, GB"
    print_header(
        "model", "devices", *memory, "host, GB", "disk, GB", "disk with `--offload`, GB", "PFLOP", "minutes"
    )
    for name, config in MODELS.items():
        alone = Load(config, settings, ITEMSIZE, 1)
        host = sum(plan.host_bytes(alone).values())
        files = [
            sum(plan.disk_bytes(alone._replace(settings=asked), ITEMSIZE).values())
            for asked in (settings, disk)
        ]
        for n in table.devices:
            work = sum(times * need.flops for need, times in plan.needs(alone._replace(n=n)))
            sizes = most_memory(config, settings, n), most_memory(config, disk, n), host, *files
            minutes = work / (n * table.flops) / 60
            amounts = (f"{size / 1e9:.0f}" for size in sizes)
            print_row(name, n, *amounts, f"{work / 1e15:.0f}", f"{minutes:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Table, description=__doc__))
