"""Which text to prune on: uniform models, pruned on equally many tokens of different texts.

The settings are those of the `standard` preset, without search and reconstruction. WikiText-2 is taken from
Wikipedia, the news are not. Usage:

  python scripts/fetch_wikipedia.py wikipedia.txt
  python scripts/ablation_text.py --texts builtin "builtin self" "builtin wikipedia.txt self@2" \\
      --evaluation wikitext-2-raw-test.txt news.txt
"""

import dataclasses
import functools
from pathlib import Path

from ablation_steps import Ablation, measure, settings_of
from jobs import Results
from markdown_table import kl_cell, print_header, print_row

from tyr_jax.cli import command
from tyr_jax.workspace.progress import Progress


@dataclasses.dataclass(frozen=True)
class Comparison(Ablation):
    """What to compare, and on what."""

    sparsities: tuple[float, ...] = (0.2109, 0.4463)
    """Shares of the block parameters to remove. For SmolLM2, the default removes as many parameters as 25%
    and 50% of units."""
    texts: tuple[str, ...] = ("builtin", "builtin self")
    """Calibration texts to compare. Each is one argument, as for `python -m tyr_jax.prune --calibration`."""
    results: Path = Path("runs/ablation_text.json")
    """File of the results. Results that it already has are not computed again. If they were made with other
    settings, name another file."""


def main(asked: Comparison) -> None:
    """Compute what is missing, then print a row per target and calibration text."""
    results = Results.of(asked.results, dataclasses.replace(asked, seeds=(), texts=(), results=Path()))
    with Progress() as progress:
        for seed in asked.seeds:
            for text in asked.texts:
                settings = settings_of(asked, asked.sparsities, {"calibration": tuple(text.split())}, seed)
                progress.log(name := f"{text}, seed {seed}")
                results.get(name, functools.partial(measure, settings, asked.sparsities, progress))
    names = [Path(text).name for text in asked.evaluation]
    columns = (f"{name}: KL (span), perplexity" for name in names)
    print_header("block parameters", "calibration text", *columns)
    for sparsity in (f"{each:g}" for each in asked.sparsities):
        for text in asked.texts:
            models = [results.found[f"{text}, seed {seed}"][sparsity] for seed in asked.seeds]
            cells = [kl_cell([model["texts"][name] for model in models]) for name in names]
            short = " ".join(Path(source).name for source in text.split())
            print_row(f"{models[0]['parameters'] / 1e6:.1f} M ({sparsity})", short, *cells)


if __name__ == "__main__":
    command.execute(main, Comparison, None, prog="scripts/ablation_text.py", description=__doc__)
