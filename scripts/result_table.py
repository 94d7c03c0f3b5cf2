"""The README's result table: dense, uniform and searched, at several sparsities, calibrated on several texts.

Every run's summary is kept, and a run that is there already is not made again. Rerun:

  python scripts/result_table.py --calibration builtin my-text.txt --wikitext wikitext-2-raw-test.txt
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from tyr_jax import pipeline, summary
from tyr_jax.config import PRESETS, WIKITEXT, Settings
from tyr_jax.io.output import EventLog, write_json
from tyr_jax.io.progress import Progress


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """Which runs make the table."""

    model: str = "builtin"
    """The dense model."""
    sparsities: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5)
    """Target sparsities."""
    calibration: tuple[str, ...] = ("builtin",)
    """Calibration texts; each makes runs of its own."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each makes runs of its own."""
    wikitext: str = WIKITEXT
    """WikiText-2 test set: the hub's, or a local file."""
    windows: int = 20
    """Windows of 2048 tokens of each evaluation text."""
    preset: str = "standard"
    """Preset of every run."""
    calibration_tokens: int | None = None
    """Tokens that the layers are pruned on, where not the preset's."""
    rounds: int | None = None
    """Rounds of supernet and search, where not the preset's."""
    generations: int | None = None
    """Generations of a round, where not the preset's."""
    results: Path = Path("runs/result_table")
    """Directory of the runs' summaries."""


def settings_of(table: ResultTable, sparsity: float, source: str, seed: int) -> Settings:
    """Settings of one run."""
    base = PRESETS[table.preset]
    data = dataclasses.replace(
        base.data,
        calibration=(source,),
        evaluation=(table.wikitext,),
        evaluation_length=2048,
        evaluation_windows=table.windows,
        calibration_tokens=table.calibration_tokens or base.data.calibration_tokens,
    )
    search = dataclasses.replace(base.search, generations=table.generations or base.search.generations)
    rounds = dataclasses.replace(base.rounds, rounds=table.rounds or base.rounds.rounds)
    return dataclasses.replace(
        base, model=table.model, sparsity=sparsity, seed=seed, data=data, rounds=rounds, search=search
    )


def run_all(table: ResultTable, source: str, seed: int) -> dict[float, dict[str, Any]]:
    """The summary of the run at each sparsity, from its file if it was made before.

    The dense model and its text are read and measured once for all of them.
    """
    paths = {s: table.results / f"{Path(source).stem}-{s:g}-seed{seed}.json" for s in table.sparsities}
    dense = None
    for sparsity, path in paths.items():
        if path.is_file():
            continue
        settings = settings_of(table, sparsity, source, seed)
        with Progress() as progress, EventLog(path.with_suffix(".events.jsonl")) as events:
            progress.log(f"== {path.stem}")
            run = pipeline.Run(settings, progress, events)
            dense = dense or pipeline.prepare(run)
            budgets = pipeline.target_budgets(dense.kinds, dense.model.config.depth, sparsity)
            outcome = pipeline.prune_prepared(run, dataclasses.replace(dense, budgets=budgets))
            write_json(path, summary.summarise(outcome, settings, [], progress.timings))
    return {sparsity: json.loads(path.read_text()) for sparsity, path in paths.items()}


def main(table: ResultTable) -> None:
    """Make the missing runs, then print the table in Markdown."""
    table.results.mkdir(parents=True, exist_ok=True)
    rows = [
        (source, seed, report)
        for source in table.calibration
        for seed in table.seeds
        for report in run_all(table, source, seed).values()
    ]
    columns = ("calibration", "removed (heads, neurons)", "seed", "text", "dense", "uniform", "searched")
    print("| " + " | ".join((*columns, "KL uniform", "KL searched")) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for source, seed, report in rows:
        obtained = ", ".join(f"{report['sparsity'][kind]:.2%}" for kind in ("attention", "ffn"))
        for text, dense in report["dense"]["quality"].items():
            uniform, searched = (report[model]["quality"][text] for model in ("uniform", "searched"))
            cells = [Path(source).stem, obtained, str(seed), text]
            cells += [f"{quality['perplexity']:.2f}" for quality in (dense, uniform, searched)]
            cells += [f"{quality['kl']:.4f}" for quality in (uniform, searched)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(ResultTable, description=__doc__))
