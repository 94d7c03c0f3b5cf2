"""Pruning in several steps, reconstructed after each, beside one step to the same number of parameters.

Attention stays whole, and all layers have FFNs of one width. A step prunes what the step before it has left,
towards what that model computes. Usage:

  python scripts/ablation_gradual.py --evaluation wikitext-2-raw-test.txt news.txt
"""

import dataclasses
import functools
import itertools
import statistics
import time
from pathlib import Path
from typing import Any

from jobs import Results
from markdown_table import print_header, print_row

from tyr_jax import PruneResult, load_model, prune_model
from tyr_jax.cli import command
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import count_parameters
from tyr_jax.run.models import AnyModel
from tyr_jax.settings import WIKITEXT

WAYS = (0.5,), (0.25, 0.5), (0.25, 0.375, 0.5)
"""The shares of the neurons that are gone after each step, for each way."""


@dataclasses.dataclass(frozen=True)
class Ablation:
    """What to compare, and on what."""

    model: str = "builtin"
    """The dense model."""
    evaluation: tuple[str, ...] = (WIKITEXT,)
    """Texts to measure on, in addition to the held-out part of the calibration text."""
    calibration: str = "builtin"
    """Calibration text. Text that a pruned model writes would be worse with every step."""
    calibration_tokens: int = 8192
    """Tokens that layers are pruned on, in every step."""
    metric_tokens: int = 4096
    """Tokens that errors in nats are computed from."""
    sequence_length: int = 512
    """Tokens of a sequence."""
    reconstruct: int = 4
    """Passes of reconstruction after every step."""
    neuron_multiple: int = 8
    """FFN widths are multiples of this. Those of all steps must be."""
    length: int = 1024
    """Tokens of a window to measure on."""
    windows: int = 4
    """Windows of each text to measure on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the calibration text."""
    results: Path = Path("runs/ablation_gradual.json")
    """File of the results. Results that it already has are not computed again."""


def shares(config: ModelConfig, steps: tuple[float, ...]) -> list[float]:
    """What each step removes, as a share of the block parameters that the step before it has left."""
    blocks = count_parameters(config)[0]
    neurons = config.depth * config.dense_shape.ffn * 3 * config.hidden
    left = [blocks - gone * neurons for gone in (0.0, *steps)]
    # A little less: the width must not be one step smaller in one layer because a parameter is missing.
    return [1 - after / before - 1e-9 for before, after in itertools.pairwise(left)]


def step(asked: Ablation, model: AnyModel, sparsity: float, seed: int) -> PruneResult:
    """Prune a model uniformly, and reconstruct it."""
    return prune_model(
        model,
        sparsity=sparsity,
        rounds=0,
        search_tokens=0,
        seed=seed,
        calibration=(asked.calibration,),
        calibration_tokens=asked.calibration_tokens,
        metric_tokens=asked.metric_tokens,
        sequence_length=asked.sequence_length,
        reconstruct=asked.reconstruct,
        neuron_multiple=asked.neuron_multiple,
        evaluation=asked.evaluation,
        evaluation_length=asked.length,
        evaluation_windows=asked.windows,
    )


def measure(asked: Ablation, config: ModelConfig, steps: tuple[float, ...], seed: int) -> dict[str, Any]:
    """Perplexities by text after the last step, and the minutes of all steps."""
    began = time.monotonic()
    first, *others = shares(config, steps)
    found = step(asked, asked.model, first, seed)
    for sparsity in others:
        found = step(asked, found, sparsity, seed)
    perplexities = {text: quality.perplexity for text, quality in found.quality.items()}
    return {"perplexity": perplexities, "minutes": (time.monotonic() - began) / 60}


def main(asked: Ablation) -> None:
    """Compute what is missing, then print a row per way."""
    common = dataclasses.replace(asked, seeds=(), results=Path())
    results, config = Results.of(asked.results, common), load_model(asked.model).config
    found = {
        steps: [
            results.get(f"{steps}, seed {seed}", functools.partial(measure, asked, config, steps, seed))
            for seed in asked.seeds
        ]
        for steps in WAYS
    }
    texts = list(found[WAYS[0]][0]["perplexity"])
    span = " (span)" if len(asked.seeds) > 1 else ""
    print_header("neurons removed", *(f"{text}: perplexity{span}" for text in texts), "minutes")
    for steps, runs in found.items():
        cells = []
        for text in texts:
            each = [one["perplexity"][text] for one in runs]
            span = f" ({min(each):.1f}–{max(each):.1f})" if len(each) > 1 else ""
            cells.append(f"{statistics.median(each):.1f}{span}")
        minutes = statistics.median(one["minutes"] for one in runs)
        print_row(", then ".join(f"{gone:g}" for gone in steps), *cells, f"{minutes:.1f}")


if __name__ == "__main__":
    command.execute(main, Ablation, None, prog="python scripts/ablation_gradual.py", description=__doc__)
