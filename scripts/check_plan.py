"""Compare a plan with the memory that the TPU compiler reports, without a TPU. Usage:

  pip install '.[tpu]' && TPU_SKIP_MDS_QUERY=1 python scripts/check_plan.py --topology v5p:2x2x1

It covers the programs of a large model's run that need the most memory. For each it prints the bytes per
device, as planned and as compiled: the program's working memory, or that and everything held meanwhile. While
a block is pruned, what is held is the plan's own figure. It fails if planned and compiled differ by more than
a fifth.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import stage_programs
import tyro
from large_models import OnTpus
from markdown_table import print_header, print_row

from tyr_jax.model.spec import ModelConfig
from tyr_jax.planning import plan
from tyr_jax.planning.load import FLOAT, Load, metric_bytes, site_sizes
from tyr_jax.planning.working import (
    drift_working,
    minibatch_bytes,
    reconstruction_working,
    site_working,
    statistics_working,
)
from tyr_jax.runtime import devices
from tyr_jax.scoring.scorer import Chunk
from tyr_jax.settings import Settings

HELD = "and what is held"


@dataclasses.dataclass(frozen=True)
class Check(OnTpus):
    """What to compile."""

    topology: str = "v5p:2x2x1"
    """The TPUs, by the compiler's name for them."""
    most_off: float = 0.2
    """Largest difference allowed between compiler and plan, as a share of the plan."""


class Working(NamedTuple):
    """Bytes per device that a program works with, as `planned` and as `compiled`."""

    program: str
    planned: float
    compiled: float

    @property
    def whole(self) -> bool:
        """Whether this is all memory that a device needs, not only the program's working memory."""
        return self.program.endswith(HELD)

    @property
    def ratio(self) -> float:
        """Compiled over planned."""
        return self.compiled / self.planned


def compare(config: ModelConfig, settings: Settings, dtype: jnp.dtype) -> list[Working]:
    """Memory of the largest programs on the current devices, with weights and activations of `dtype`."""
    itemsize, n = dtype.itemsize, devices.count()
    load = Load(config, settings, itemsize, n)
    needs = {need.stage: need for need, _ in plan.needs(load)}
    found = {stage.name: stage for stage in stage_programs.all_stages(config, settings, dtype)}

    def memory(name: str) -> Any:
        compiled: Any = found[name].lower().compile()
        return compiled.memory_analysis()

    # "ffn: statistics" also holds XᵀX. The levels that "ffn: pruning" returns count as part of the supernet.
    statistics, pruning = memory("ffn: statistics"), memory("ffn: pruning")
    gram = FLOAT * site_sizes(config)[1] ** 2
    fold = needs["first supernet"]
    rows = [
        Working(
            "ffn: statistics",
            statistics_working(load),
            gram + statistics.temp_size_in_bytes,
        ),
        Working(
            "ffn: pruning",
            site_working(load),
            pruning.argument_size_in_bytes + pruning.temp_size_in_bytes,
        ),
    ]
    held = fold.weights + fold.supernet
    working = max(row.compiled for row in rows)
    rows.append(Working(f"first supernet, {HELD}", fold.memory - fold.text, held + working))
    if plan.corrects_drift(settings):
        drift, back = memory("ffn: drift"), memory("ffn: drift corrected")
        pull = FLOAT * site_sizes(config)[1] * config.hidden
        added = gram + pull + drift.temp_size_in_bytes
        taken = back.argument_size_in_bytes + back.temp_size_in_bytes
        rows.append(Working("ffn: drift", drift_working(load), max(added, taken)))
    heads, ffn = site_sizes(config)
    # The dense matrices that stay in memory, while the search has its own copies in the order of removal.
    unused = itemsize * config.depth * config.hidden * (2 * heads + 3 * ffn) / n

    def at_work(name: str) -> tuple[float, float, str]:
        """Bytes that a program works with, bytes held meanwhile, and the program's name."""
        compiled, (_, second, *_) = memory(name), found[name].arguments
        # The residuals that the trunk leaves are also working memory while candidates run.
        left = second.residuals.size * itemsize / n if isinstance(second, Chunk) else 0
        working = compiled.output_size_in_bytes + compiled.temp_size_in_bytes + left
        return working, compiled.argument_size_in_bytes - left + unused + metric_bytes(load), name

    if settings.pruning.metric != "none":
        backward, (blocks, before, _, total) = memory("metric: backward"), found["metric: backward"].arguments
        stays = sum(array.size * array.dtype.itemsize for array in jax.tree.leaves((blocks, total))) / n
        way_back = backward.argument_size_in_bytes + backward.temp_size_in_bytes - stays
        way_back += backward.output_size_in_bytes - backward.alias_size_in_bytes
        # The residuals before all layers are already in memory when the head predicts.
        answers = memory("metric: answers")
        answered = answers.temp_size_in_bytes + answers.output_size_in_bytes + before.size * itemsize / n
        name = "Fisher metric"
        rows.append(Working(name, needs[name].working, max(way_back, answered)))
    searched = max(map(at_work, largest_scoring(list(found))))
    for need, (working, held, name) in (
        *([(needs["descent"], max(at_work("search: slopes"), searched))] if "descent" in needs else []),
        (needs[settings.search[-1].name], searched),
    ):
        rows.append(Working(name, need.working, working))
        rows.append(Working(f"{name}, {HELD}", need.memory - need.text, held + working))
    if "writing" in found:
        written, need = memory("writing"), needs["self-generated text"]
        working = written.argument_size_in_bytes + written.temp_size_in_bytes
        rows.append(Working(need.stage, need.working, working - bytes_of(found["writing"].arguments[:2]) / n))
    if "reconstruction: a step" in found:
        mixing, learnt = memory("reconstruction: mixing"), memory("reconstruction: a step")
        (tensors, _), minibatch = found["reconstruction: a step"].arguments[:2]
        minibatches = minibatch_bytes(load)
        # The residuals to mix are counted elsewhere; their targets are not. The output counts as
        # mini-batches.
        mixed = mixing.argument_size_in_bytes / 2 + mixing.temp_size_in_bytes
        # The tensors as they were before training are also in memory, in the model's type.
        working = learnt.argument_size_in_bytes + learnt.temp_size_in_bytes
        working += (bytes_of(tensors) * itemsize / FLOAT - bytes_of(minibatch)) / n
        planned = reconstruction_working(load)
        rows.append(Working("ffn: reconstruction", planned, minibatches + max(mixed, working)))
    return rows


def bytes_of(tree: Any) -> int:
    """Bytes of the arrays of a pytree, on all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def largest_scoring(names: list[str]) -> list[str]:
    """Names of the scoring programs on the most text: one of the trunk, and one of the candidates."""
    groups: dict[str, list[str]] = {"trunk, ": [], "candidate": []}
    for name in names:
        for key, group in groups.items():
            if name.startswith("search: ") and key in name:
                group.append(name)
    return [max(group, key=lambda name: int(name.split(" × ")[0].split()[-1])) for group in groups.values()]


def main(check: Check) -> None:
    """Print a row per program."""
    settings = check.settings()
    print_header("program", "planned, GB", "compiled, GB", "ratio")
    # Reconstruction is off by default, but its plan is checked as well.
    pruning = dataclasses.replace(settings.pruning, reconstruct=1)
    settings = dataclasses.replace(settings, pruning=pruning)
    with jax.set_mesh(check.mesh()):
        rows = compare(check.config(), settings, jnp.dtype("bfloat16"))
    for row in rows:
        print_row(row.program, f"{row.planned / 1e9:.2f}", f"{row.compiled / 1e9:.2f}", f"{row.ratio:.2f}")
    if failed := [row.program for row in rows if abs(row.ratio - 1) > check.most_off]:
        raise SystemExit(f"not as planned on {check.topology}: {', '.join(failed)}")


if __name__ == "__main__":
    main(tyro.cli(Check, description=__doc__))
