"""The README's result table: dense, uniform and searched, at several sparsities, calibrated on several texts.

Every run's summary is kept, and a run that is there already is not made again. Rerun:

  python scripts/result_table.py --calibration builtin my-text.txt --wikitext wikitext-2-raw-test.txt
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import tyro

from tyr_jax import summary
from tyr_jax.config import PRESETS, WIKITEXT, Settings
from tyr_jax.io.output import EventLog, write_json
from tyr_jax.io.progress import Progress
from tyr_jax.pipeline import prune_model


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
    )
    return dataclasses.replace(base, model=table.model, sparsity=sparsity, seed=seed, data=data)


def run(table: ResultTable, sparsity: float, source: str, seed: int) -> dict[str, Any]:
    """The summary of one run, from its file if it was made before."""
    name = f"{Path(source).stem}-{sparsity:g}-seed{seed}"
    path = table.results / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    settings = settings_of(table, sparsity, source, seed)
    with Progress() as progress, EventLog(table.results / f"{name}.events.jsonl") as events:
        progress.log(f"== {name}")
        outcome = prune_model(settings, progress, events)
        report = summary.summarise(outcome, settings, [], progress.timings)
    write_json(path, report)
    return report


def main(table: ResultTable) -> None:
    """Make the missing runs, then print the table in Markdown."""
    table.results.mkdir(parents=True, exist_ok=True)
    rows = [
        (source, sparsity, seed, run(table, sparsity, source, seed))
        for source in table.calibration
        for seed in table.seeds
        for sparsity in table.sparsities
    ]
    columns = ("calibration", "removed (heads, neurons)", "seed", "text", "dense", "uniform", "searched")
    print("| " + " | ".join((*columns, "KL uniform", "KL searched")) + " |")
    print("|---" * (len(columns) + 2) + "|")
    for source, _, seed, report in rows:
        obtained = ", ".join(f"{report['sparsity'][kind]:.2%}" for kind in ("attention", "ffn"))
        for text, dense in report["dense"]["quality"].items():
            uniform, searched = (report[model]["quality"][text] for model in ("uniform", "searched"))
            cells = [Path(source).stem, obtained, str(seed), text]
            cells += [f"{quality['perplexity']:.2f}" for quality in (dense, uniform, searched)]
            cells += [f"{quality['kl']:.4f}" for quality in (uniform, searched)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(tyro.cli(ResultTable, description=__doc__))
