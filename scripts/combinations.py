"""Quantisation and 2:4 sparsity on top of pruning: what each costs a dense and a pruned model (Table 7).

  python scripts/combinations.py builtin runs/main_results/seed0/0.2109 --wikitext wikitext-2-raw-test.txt

Every matrix of the blocks is changed, each on the inputs that those before it then give on calibration text.
Embeddings and output head stay as they are. Sizes are of the blocks, in MB: integers with a scale of 16 bits
for every group (8 bits: for every output), 2:4 sparsity with two bits of position for every value that is
kept, and 16 bits for everything else.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import numpy as np
import tyro
from jobs import Results
from markdown_table import print_header, print_row
from quantise import Change, Integers, Rule, Zeros, change_matrices, compensated, rounded

from tyr_jax.cli import command
from tyr_jax.data import DataSpec, load_evaluation, load_splits
from tyr_jax.evaluation import quality
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.prediction import Prediction
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import block_specs
from tyr_jax.run.models import GivenModel, load_shown
from tyr_jax.runtime import devices
from tyr_jax.settings import WIKITEXT
from tyr_jax.workspace.progress import Progress

INTEGERS: tuple[Integers, ...] = Integers(bits=8), Integers(bits=4, group=64)


class Way(NamedTuple):
    """A way to store matrices: of what values, how these are found, their rule, and whether text is read."""

    values: str
    how: str
    rule: Rule | None = None
    change: Change | None = None
    reads: bool = False


def ways() -> Iterator[Way]:
    """All ways, the matrices as they are first."""
    yield Way("16 bits", "as it is")
    named: list[tuple[str, Rule, str, str]] = []
    for integers in INTEGERS:
        groups = f" in groups of {integers.group}" if integers.group else ""
        named.append((f"{integers.bits} bits{groups}", integers, "round to nearest", "GPTQ"))
    named.append(("2:4 zeros", Zeros(), "largest", "SparseGPT"))
    for values, rule, nearest, better in named:
        yield Way(values, nearest, rule, to_nearest(rule))
        yield Way(values, better, rule, functools.partial(compensated, rule=rule), True)


def to_nearest(rule: Rule) -> Change:
    """The change to the nearest allowed matrix, whatever the inputs."""
    return lambda weight, gram: rounded(weight, rule)


@dataclasses.dataclass(frozen=True)
class Combinations:
    """What to combine, and on what."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")]
    """Models, the dense one first."""
    calibration: tuple[str, ...] = ("builtin",)
    """Calibration text."""
    calibration_tokens: int = 16384
    """Tokens of the calibration text."""
    wikitext: str = WIKITEXT
    """Text to measure on."""
    windows: int = 10
    """Windows of that text."""
    length: int = 1024
    """Tokens of a window."""
    results: Path = Path("runs/combinations.json")
    """File of the results."""


def megabytes(config: ModelConfig, rule: Rule | None) -> float:
    """Size of the blocks of a model in MB: matrices by the rule, everything else in 16 bits."""
    total = 0.0
    for layer in range(config.depth):
        for spec in block_specs(config, layer):
            count = math.prod(spec.shape)
            inputs = math.prod(spec.shape[: len(spec.inputs)])
            plain = rule is None or not spec.inputs
            total += 16 * count if plain else rule.bits_of(inputs, count // inputs)  # type: ignore[union-attr]
    return total / 8e6


class Measured(NamedTuple):
    """A model, the text to measure on, and the text to change its matrices by."""

    model: LoadedModel
    windows: np.ndarray
    calibration: np.ndarray

    @classmethod
    def load(cls, asked: Combinations, name: str, progress: Progress) -> Self:
        """The model of a name, with its texts."""
        model = load_shown(GivenModel(name), progress)
        data = DataSpec(
            calibration=asked.calibration,
            evaluation=(asked.wikitext,),
            calibration_tokens=asked.calibration_tokens,
            search_tokens=0,
            evaluation_windows=asked.windows,
            evaluation_length=asked.length,
        )
        only = dataclasses.replace(data, calibration=())
        (windows,) = load_evaluation(only, model.tokenizer).values()
        return cls(model, windows, load_splits(data, model.tokenizer, 0).calibration)

    def store(self, way: Way, dense: Prediction) -> dict[str, float]:
        """Perplexity, KL to the `dense` model, and size of the blocks, once the matrices are stored in a
        way."""
        config, params = self.model.config, self.model.params
        if way.change is not None:
            texts = [self.calibration] if way.reads else []
            params = change_matrices(params, texts, config, way.change)
        reached = quality.measure(params, self.windows, config, dense)
        return {"perplexity": reached.perplexity, "kl": reached.kl, "MB": megabytes(config, way.rule)}


def main(asked: Combinations) -> None:
    """Compute what is missing, then print a row for each way and columns for each model."""
    # The KL divergence is to the first model.
    common = dataclasses.replace(asked, models=asked.models[:1], results=Path())
    results = Results.of(asked.results, common)
    missing = [name for name in asked.models if any(key(name, way) not in results.found for way in ways())]
    with devices.in_use(), Progress() as progress:
        if missing:
            first = Measured.load(asked, asked.models[0], progress)
            dense, _ = quality.measure_dense(first.model.params, first.windows, first.model.config)
        for name in missing:
            measured = first if name == asked.models[0] else Measured.load(asked, name, progress)
            with progress.stage(name, len(list(ways())), "ways") as stage:
                for way in ways():
                    results.get(key(name, way), functools.partial(measured.store, way, dense))
                    stage.advance(note=f"{way.values}, {way.how}")
    print_header("values", "how", *(f"{Path(name).name}: MB, perplexity, KL" for name in asked.models))
    for way in ways():
        cells = [results.found[key(name, way)] for name in asked.models]
        # The KL of the dense model to itself may be a little below zero; adding zero drops the sign.
        shown = (
            f"{cell['MB']:.0f}, {cell['perplexity']:.1f}, {round(cell['kl'], 3) + 0:.3f}" for cell in cells
        )
        print_row(way.values, way.how, *shown)


def key(model: str, way: Way) -> str:
    """The name of a result."""
    return f"{model}: {way.values}, {way.how}"


if __name__ == "__main__":
    command.execute(main, Combinations, None, prog="python scripts/combinations.py", description=__doc__)
