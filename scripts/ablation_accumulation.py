"""What error accumulation is worth (paper, Table 4): uniform pruning under each mode, over several seeds.

A nine-level supernet is built with each mode and its centre, the uniform distribution, is measured. Rerun:

  python scripts/ablation_accumulation.py --calibration my-text.txt --wikitext wikitext-2-raw-test.txt
"""

import dataclasses
import json
import statistics
from pathlib import Path

import jax.numpy as jnp
import tyro

from tyr_jax import quality
from tyr_jax.config import WIKITEXT
from tyr_jax.data import DataSpec, load_splits
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.io.output import write_json
from tyr_jax.io.progress import Progress
from tyr_jax.pruning.supernet import ACCUMULATIONS, PruningSettings, build_supernet, select
from tyr_jax.search import space


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What to compare, and on what."""

    model: str = "builtin"
    """The dense model."""
    sparsity: float = 0.5
    """Share of heads and neurons removed from every layer."""
    calibration: str = "builtin"
    """Calibration text."""
    calibration_tokens: int = 32768
    """Tokens of it."""
    wikitext: str = WIKITEXT
    """WikiText-2 test set: the hub's, or a local file."""
    windows: int = 10
    """Windows of 2048 tokens to measure on."""
    modes: tuple[str, ...] = ACCUMULATIONS
    """Modes of error accumulation."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Calibration seeds."""
    results: Path = Path("runs/ablation_accumulation.json")
    """Where results are kept; those that are there already are not computed again."""


def measure(
    ablation: Ablation, model: LoadedModel, mode: str, seed: int, progress: Progress
) -> dict[str, float]:
    """Perplexity by text of the uniform distribution in a supernet built with `mode`."""
    data = DataSpec(
        calibration=(ablation.calibration,),
        evaluation=(ablation.wikitext,),
        calibration_tokens=ablation.calibration_tokens,
        search_tokens=0,
        evaluation_windows=ablation.windows,
    )
    splits = load_splits(data, model.tokenizer, seed)
    pruning = PruningSettings(accumulation=mode)  # type: ignore[arg-type]
    kinds, depth = pruning.kinds(model.config), model.config.depth
    budgets = tuple(space.unit_budget(kind, depth, ablation.sparsity) for kind in kinds)
    grid = space.level_grid(kinds, space.uniform_centres(kinds, depth, budgets), 9, 0.125)
    with progress.stage(f"{mode}, seed {seed}: supernet", 2 * depth, "sites") as stage:
        supernet = build_supernet(
            model.params,
            splits.calibration,
            model.config,
            grid,
            pruning,
            seed=seed,
            batch=max(1, quality.BATCH_TOKENS // data.sequence_length),
            on_site=lambda name, _: stage.advance(note=name),
        )
    masked = select(model.params, supernet, jnp.asarray(space.centre_distribution(grid)))
    return {
        name: quality.measure(masked, windows, model.config).perplexity
        for name, windows in splits.evaluation.items()
    }


def print_markdown(results: dict[str, dict[str, float]], ablation: Ablation) -> None:
    """Print a row per mode: the median over seeds, and each seed."""
    texts = list(next(iter(results.values())))
    header = [f"{text}: median (seeds)" for text in texts]
    print("| accumulation | " + " | ".join(header) + " |")
    print("|---" * (1 + len(texts)) + "|")
    for mode in ablation.modes:
        cells = []
        for text in texts:
            values = [results[f"{mode}-{seed}"][text] for seed in ablation.seeds]
            each = " / ".join(f"{value:.1f}" for value in values)
            cells.append(f"{statistics.median(values):.1f} ({each})")
        print(f"| {mode} | " + " | ".join(cells) + " |")


def main(ablation: Ablation) -> None:
    """Compute what is missing, then print the table."""
    results = json.loads(ablation.results.read_text()) if ablation.results.is_file() else {}
    ablation.results.parent.mkdir(parents=True, exist_ok=True)
    model = load_model(ablation.model)
    with Progress() as progress:
        for seed in ablation.seeds:
            for mode in ablation.modes:
                if f"{mode}-{seed}" not in results:
                    results[f"{mode}-{seed}"] = measure(ablation, model, mode, seed, progress)
                    write_json(ablation.results, results)
    print_markdown(results, ablation)


if __name__ == "__main__":
    main(tyro.cli(Ablation, description=__doc__))
