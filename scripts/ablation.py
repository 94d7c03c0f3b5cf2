"""How much single choices of local pruning matter: uniform pruning with each of them, over several seeds.

The variants are the modes of error accumulation, the saliency without one of its terms, removal of neurons in
one step for each level (paper, Table 4), other saliencies, another damping, and alternatives to the local
pruning (paper, Table 1). For each, the script builds a nine-level supernet and measures its
centre, the uniform distribution; only FLAP chooses by itself how many units each layer keeps. Usage:

  python scripts/ablation.py --calibration my-text.txt --wikitext wikitext-2-raw-test.txt
"""

import dataclasses
import functools
import statistics
from pathlib import Path
from typing import Any, get_args

import flap
from jobs import Results
from markdown_table import print_header, print_row

from tyr_jax import space
from tyr_jax.cli import command
from tyr_jax.data import DataSpec, load_splits
from tyr_jax.errors import UserError
from tyr_jax.evaluation import quality
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.pruning.compress import mask
from tyr_jax.pruning.criteria import BrainDamage, Magnitude, WandaSP
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.keep import Keep
from tyr_jax.pruning.osscar import OSSCAR
from tyr_jax.pruning.saliency import PAPER_SALIENCY, TaylorSaliency
from tyr_jax.pruning.settings import Accumulation
from tyr_jax.settings import PRESETS, WIKITEXT, Preset
from tyr_jax.workspace.progress import Progress

VARIANTS: dict[str, dict[str, Any]] = {
    **{mode: {"accumulation": mode} for mode in get_args(Accumulation)},
    "paper's saliency": {"saliency": PAPER_SALIENCY},
    "without the second-order term": {"saliency": TaylorSaliency("abs", "none")},
    "without the first-order term": {"saliency": TaylorSaliency("none", "channel")},
    "signed saliency": {"saliency": TaylorSaliency("signed", "block")},
    "joint second-order term (ZipLM)": {"saliency": TaylorSaliency("none", "block")},
    "a level at a time": {"neuron_chunk": 10**6},
    "mean damping": {"damping_scale": "mean"},
    "OSSCAR": {"pruner": OSSCAR()},
    "magnitude, dense rows": {"saliency": Magnitude(), "pruner": Keep()},
    "Wanda-sp, dense rows": {"saliency": WandaSP(), "pruner": Keep()},
    "optimal brain damage, dense rows": {"saliency": BrainDamage(), "pruner": Keep()},
}
"""Changes of each variant to the preset's local pruning."""

FLAP = "FLAP, dense rows and biases"
"""The variant that is no change to local pruning: it also chooses what each layer keeps."""


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
    """Tokens of the calibration text."""
    preset: Preset = "paper"
    """Preset for all other settings of local pruning, including noise in the calibration text. The metric
    of outputs, drift and reconstruction have no effect here; `ablation_steps.py` measures them."""
    sequence_length: int = 512
    """Tokens in a sequence."""
    wikitext: str = WIKITEXT
    """WikiText-2 test set: the hub's, or a local file."""
    windows: int = 10
    """Windows of 2048 tokens to measure on."""
    variants: tuple[str, ...] = (*VARIANTS, FLAP)
    """Variants to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Calibration seeds."""
    results: Path = Path("runs/ablation.json")
    """File of the results. Results that it already has are not computed again. If they were made with other
    settings, name another file."""


def measure(
    ablation: Ablation, model: LoadedModel, variant: str, seed: int, progress: Progress
) -> dict[str, float]:
    """Perplexity, by text, of the uniform distribution in a supernet built with `variant`, or of FLAP's."""
    data = DataSpec(
        calibration=(ablation.calibration,),
        evaluation=(ablation.wikitext,),
        calibration_tokens=ablation.calibration_tokens,
        calibration_noise=PRESETS[ablation.preset].data.calibration_noise,
        calibration_openings=PRESETS[ablation.preset].data.calibration_openings,
        sequence_length=ablation.sequence_length,
        search_tokens=0,
        evaluation_windows=ablation.windows,
    )
    splits = load_splits(data, model.tokenizer, seed)
    pruning = dataclasses.replace(PRESETS[ablation.preset].pruning, **VARIANTS.get(variant, {}))
    kinds, depth = pruning.kinds(model.config), model.config.depth
    grid = space.uniform_grid(kinds, depth, ablation.sparsity, 9, 0.125)
    centre, texts = space.centre_distribution(grid), (splits.calibration, splits.openings)
    config = model.config
    with progress.stage(f"{variant}, seed {seed}", 2 * depth, "sites") as stage:
        if variant == FLAP:
            heads, neurons = (int(kept) for kept in space.kept_units(grid, centre).sum(axis=-1))
            units = kinds[0].units, kinds[1].units
            masked, config = flap.prune(model.params, texts, model.config, units, (heads, neurons))
            stage.advance(2 * depth)
        else:
            plan = FoldPlan(model.config, grid, pruning, seed)
            supernet = build_supernet(
                model.params, texts, plan, on_site=lambda name, _: stage.advance(note=name)
            )
            masked = mask(model.params, supernet, centre, config)
    return {
        name: quality.measure(masked, windows, config).perplexity
        for name, windows in splits.evaluation.items()
    }


def distinct(ablation: Ablation) -> tuple[str, ...]:
    """The variants, without those that have the settings of one before them, such as the preset's own."""
    base, seen, kept = PRESETS[ablation.preset].pruning, [], []
    for variant in ablation.variants:
        pruning = None if variant == FLAP else dataclasses.replace(base, **VARIANTS[variant])
        if pruning not in seen:
            seen.append(pruning)
            kept.append(variant)
    return tuple(kept)


def print_markdown(results: dict[str, dict[str, float]], ablation: Ablation) -> None:
    """Print a row per variant: the median over seeds, and the value of each seed."""
    texts = list(next(iter(results.values())))
    header = [f"{text}: median (seeds)" for text in texts]
    print_header("variant", *header)
    for variant in distinct(ablation):
        cells = []
        for text in texts:
            values = [results[f"{variant}, seed {seed}"][text] for seed in ablation.seeds]
            each = " / ".join(f"{value:.1f}" for value in values)
            cells.append(f"{statistics.median(values):.1f} ({each})")
        print_row(variant, *cells)


def main(ablation: Ablation) -> None:
    """Compute what is missing, then print the table."""
    unknown = set(ablation.variants) - {*VARIANTS, FLAP}
    if unknown:
        raise UserError(f"there is no variant '{min(unknown)}'; choose from {', '.join((*VARIANTS, FLAP))}")
    common = dataclasses.replace(ablation, variants=(), seeds=(), results=Path())
    results, model = Results.of(ablation.results, common), load_model(ablation.model)
    with Progress() as progress:
        for seed in ablation.seeds:
            for variant in distinct(ablation):
                compute = functools.partial(measure, ablation, model, variant, seed, progress)
                results.get(f"{variant}, seed {seed}", compute)
    print_markdown(results.found, ablation)


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="scripts/ablation.py", description=__doc__)
