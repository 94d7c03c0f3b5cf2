"""The README's result table: dense, uniform and searched, at several sparsities, calibrated on several texts.

Every run's summary is kept, and a run that is there already is not made again, unless it was made with other
settings: then another directory is asked for. Rerun:

  python scripts/result_table.py --calibration builtin my-text.txt --wikitext wikitext-2-raw-test.txt
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from markdown_table import print_header, print_row

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.options import as_json
from tyr_jax.pruning.target import target_of
from tyr_jax.run import pipeline, prepare, summary
from tyr_jax.settings import PRESETS, WIKITEXT, Preset, Settings, validate
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress


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
    preset: Preset = "standard"
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
    )
    settings = dataclasses.replace(base, model=table.model, sparsity=(sparsity,), seed=seed, data=data)
    for part, name in (("data", "calibration_tokens"), ("rounds", "rounds"), ("search", "generations")):
        if (value := getattr(table, name)) is not None:
            changed = dataclasses.replace(getattr(settings, part), **{name: value})
            settings = dataclasses.replace(settings, **{part: changed})
    validate(settings)
    return settings


def read_report(path: Path, settings: Settings) -> dict[str, Any]:
    """The summary at `path`.

    Raises:
        UserError: it was made with other settings.
    """
    report = json.loads(path.read_text())
    if report["settings"] != json.loads(json.dumps(as_json(settings))):
        raise UserError(f"{path} was made with other settings; name another directory with --results")
    return dict(report)


def run_all(table: ResultTable, source: str, seed: int) -> dict[float, dict[str, Any]]:
    """The summary of the run at each sparsity, from its file if it was made before.

    The dense model and its text are read and measured once for all of them.
    """
    dense, reports = None, {}
    for sparsity in table.sparsities:
        path = table.results / f"{Path(source).stem}-{sparsity:g}-seed{seed}.json"
        settings = settings_of(table, sparsity, source, seed)
        if path.is_file():
            reports[sparsity] = read_report(path, settings)
            continue
        with Progress() as progress, EventLog(path.with_suffix(".events.jsonl")) as events:
            progress.log(f"== {path.stem}")
            run = prepare.Run(settings, progress, events)
            dense = dense or prepare.prepare(run)
            target = target_of(dense.model.config, settings.pruning, sparsity)
            (outcome,) = pipeline.prune_prepared(run, dataclasses.replace(dense, targets=(target,)))
            reports[sparsity] = summary.summarise(outcome, [])
            write_json(path, reports[sparsity])
    return reports


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
    print_header(*columns, "KL uniform", "KL searched")
    for source, seed, report in rows:
        obtained = ", ".join(f"{report['sparsity'][kind]:.2%}" for kind in ("attention", "ffn"))
        for text, dense in report["dense"]["quality"].items():
            uniform, searched = (report[model]["quality"][text] for model in ("uniform", "searched"))
            windows = report["texts"][text]
            cells = [Path(source).stem, obtained, str(seed), f"{text}, {windows['sequences']} windows"]
            cells += [f"{quality['perplexity']:.2f}" for quality in (dense, uniform, searched)]
            cells += [f"{quality['kl']:.4f}" for quality in (uniform, searched)]
            print_row(*cells)


if __name__ == "__main__":
    command.execute(main, ResultTable, None, prog="scripts/result_table.py", description=__doc__)
