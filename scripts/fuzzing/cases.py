"""Malformed cases: a command line and the files that it meets. Each case depends only on its seed."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing import mutation
from fuzzing.material import SMALL
from fuzzing.sandbox import Stop
from tyr_jax.cli.benchmark import BenchmarkArguments
from tyr_jax.cli.command import Reading
from tyr_jax.cli.evaluate import EvaluateArguments
from tyr_jax.cli.export import ExportArguments
from tyr_jax.cli.finetune import FinetuneArguments
from tyr_jax.cli.generate import GenerateArguments
from tyr_jax.cli.prune import PruneArguments
from tyr_jax.evaluation.settings import BenchmarkSettings, EvaluationSettings, GenerationSettings
from tyr_jax.options import every_option
from tyr_jax.recovery.settings import RecoverySettings
from tyr_jax.run.export import ExportSettings
from tyr_jax.settings import PRESETS

NUMBERS = (
    *("0", "-1", "1", "2", "3", "1.5", "100000000000000000000", "2147483648", "99999999", "nan", "inf"),
    *("1e308", "1e-320", "-0.0", "1e400"),
)
WORDS = (
    *("", "x", "[a/b]", "c[/x]", "\x1b[2J", "../x", "é\udc80", "a:b:c:d:e:f", "x" * 5000, "@", "-", "none"),
    *("{}", "0x10", "1_000", "--", "\n", "~", "https://example.org/x"),
)
"""Values of flags."""

CODE = "open('RUN', 'w').close()\nraise SystemExit('run')\n"
"""Foreign code. It leaves a file `RUN` if it is run."""


class Case(NamedTuple):
    """A command with its arguments, how its input is malformed, and the signal that stops it, if any."""

    command: str
    arguments: list[str]
    how: str
    stop: Stop | None = None


class Place(NamedTuple):
    """The directories of a case, which is made from the valid input in `base`.

    The command runs in `here`. It cannot write to `given`.
    """

    base: Path
    given: Path
    here: Path

    def copy(self, name: str, here: bool = False) -> Path:
        """Copy a valid file or directory to `given`, or to `here`."""
        source, target = self.base / name, (self.here if here else self.given) / name
        return Path((shutil.copytree if source.is_dir() else shutil.copy2)(source, target))


def flags(options: dict[str, Any]) -> list[str]:
    """Options as command-line arguments."""
    arguments = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else (value,)
        arguments += [f"--{name.replace('_', '-')}", *map(str, values)]
    return arguments


def on_model(draw: random.Random, place: Place, model: str) -> tuple[str, list[str]]:
    """A command that reads a model."""
    dense, text = str(place.base / "dense"), str(place.base / "text.txt")
    small = {name: value for name, value in SMALL.items() if name.startswith("evaluation")}
    train = flags({"data": text, "evaluation": text, "tokens": 64, "sequence_length": 32, "step_tokens": 64})
    train += flags({"evaluation_length": 32, "evaluation_windows": 1, "output": "new"})
    prune = flags(SMALL | {"rounds": 0, "calibration": text, "evaluation": text, "output": "new"})
    return draw.choice(
        [
            ("prune", ["--model", model, *prune]),
            ("prune", ["--model", model, "--plan"]),
            ("evaluate", [model, "--evaluation", text, *flags(small)]),
            ("evaluate", [model]),
            ("finetune", [model, "--goal", "next-token", *train]),
            ("finetune", [str(place.base / "pruned"), "--teacher", model, *train]),
            ("export", [model, "--output", "x.gguf", "--quantize", draw.choice(("f32", "q8_0", "q4_k_m"))]),
            ("generate", [model, "the cat", "--max-tokens", "4"]),
            ("generate", [model, "the cat", "sat", "--chat", "--max-tokens", "2"]),
            ("benchmark", [dense, model, *flags({"prompts": 4, "batches": 1, "tokens": 1, "repeats": 1})]),
            ("report", [model]),
        ]
    )


def on_text(draw: random.Random, place: Place, text: str) -> tuple[str, list[str]]:
    """A command that reads a text."""
    dense = str(place.base / "dense")
    small = flags({name: value for name, value in SMALL.items() if name.startswith("evaluation")})
    given = flags(SMALL | {"rounds": 0, "evaluation": str(place.base / "text.txt"), "output": "new"})
    train = flags({"tokens": 64, "sequence_length": 32, "step_tokens": 64, "evaluation_windows": 1})
    train += flags({"evaluation": str(place.base / "text.txt"), "evaluation_length": 32, "output": "new"})
    return draw.choice(
        [
            ("prune", ["--model", dense, "--calibration", text, *given]),
            ("prune", ["--model", dense, "--calibration", text, "--chat-template", *given]),
            ("evaluate", [dense, "--evaluation", text, *small]),
            ("evaluate", [dense, "--evaluation", text, "--chat-template", "--bos", *small]),
            ("finetune", [dense, "--goal", "next-token", "--data", text, *train]),
        ]
    )


def spoilt_model(draw: random.Random, place: Place) -> Case:
    """A model with one corrupted file."""
    model = place.copy(draw.choice(("dense", "dense", "dense.gguf", "dense.gguf", "pruned", "recovered")))
    files = [model] if model.is_file() else sorted(path for path in model.iterdir() if path.suffix != ".html")
    how = mutation.spoil_file(draw, draw.choice(files))
    return Case(*on_model(draw, place, str(model)), how)


def spoilt_text(draw: random.Random, place: Place) -> Case:
    """A corrupted text."""
    text = place.copy(draw.choice(("text.txt", "rows.jsonl", "chat.jsonl", "table.parquet")))
    how = mutation.spoil_file(draw, text)
    return Case(*on_text(draw, place, str(text)), how)


def spoilt_tasks(draw: random.Random, place: Place) -> Case:
    """Corrupted data of a task."""
    tasks = place.copy("tasks")
    how = mutation.spoil_file(draw, draw.choice(sorted(path for path in tasks.rglob("*") if path.is_file())))
    arguments = [str(place.base / "dense"), "--tasks", "arc_easy", "--limit", "2", "--data-dir", str(tasks)]
    return Case("evaluate", arguments, how)


def spoilt_record(draw: random.Random, place: Place) -> Case:
    """A model with a corrupted record, in a directory that the command may write to."""
    model = place.copy(draw.choice(("pruned", "recovered")), here=True)
    records = [path for path in model.iterdir() if path.name in RECORDS]
    how = mutation.spoil_file(draw, draw.choice(sorted(records)))
    chosen = on_model(draw, place, str(model)) if draw.random() < 0.5 else ("report", [str(model)])
    return Case(*chosen, how)


RECORDS = ("summary.json", "recovery.json", "benchmark.json", "events.jsonl")


def spoilt_progress(draw: random.Random, place: Place) -> Case:
    """An interrupted run whose kept work is corrupted."""
    kept = place.copy(".new.unfinished", here=True)
    files = sorted(path for path in kept.rglob("*") if path.is_file() and path.name != "lock")
    file = draw.choice(files)
    how = (
        mutation.spoil_place(draw, file, place.given)
        if draw.random() < 0.2
        else mutation.spoil_file(draw, file)
    )
    text = str(place.base / "text.txt")
    arguments = flags(SMALL | {"sparsity": 0.5, "calibration": text, "evaluation": text, "output": "new"})
    return Case("prune", ["--model", str(place.base / "dense"), *arguments], how)


def spoilt_place(draw: random.Random, place: Place) -> Case:
    """An input or output file replaced by something that is not a regular file."""
    model = place.copy(draw.choice(("dense", "pruned")), here=draw.random() < 0.5)
    names = [path.name for path in model.iterdir()]
    planted = [".report.html.unfinished", ".benchmark.json.unfinished", "report.html", "benchmark.json"]
    outputs = [place.here / name for name in ("new", ".new.unfinished", "x.gguf", ".x.gguf.unfinished")]
    targets = [model / draw.choice(names), model / draw.choice(planted), draw.choice(outputs)]
    outside = place.given / "mine"
    outside.write_text("mine")
    how = mutation.spoil_place(draw, draw.choice(targets), outside)
    command, arguments = on_model(draw, place, str(model))
    more = ["--overwrite"] if command in ("prune", "finetune", "export", "benchmark") else []
    return Case(command, [*arguments, *(more if draw.random() < 0.5 else [])], how)


def strange_flags(draw: random.Random, place: Place) -> Case:
    """A command with flag values that are not expected."""
    settings: dict[str, Any] = {
        "prune": PruneArguments(draw.choice(list(PRESETS.values()))),
        "finetune": FinetuneArguments(RecoverySettings("x"), Reading()),
        "evaluate": EvaluateArguments("x", EvaluationSettings(), Reading()),
        "export": ExportArguments("x", ExportSettings(), Reading()),
        "generate": GenerateArguments("x", (), GenerationSettings(), Reading()),
        "benchmark": BenchmarkArguments("x", "x", BenchmarkSettings(), Reading()),
    }
    names = {name: [each.flag for each in every_option(value)] for name, value in settings.items()}
    while True:
        command, arguments = on_model(draw, place, str(place.base / draw.choice(("dense", "pruned"))))
        if command in names:
            break
    chosen = []
    for _ in range(draw.choice((1, 1, 2))):
        flag = draw.choice(names[command])
        if flag not in REACHING_OUT:
            chosen += [flag, draw.choice(NUMBERS if draw.random() < 0.8 else WORDS)]
    return Case(command, [*arguments, *chosen], f"{shown(chosen)}")


REACHING_OUT = ("--family", "--push-to-hub", "--distributed", "--coordinator-address", "--num-processes")
"""Flags that would import code, or wait for other processes or the network."""


def shown(arguments: list[str]) -> str:
    """Arguments as one line, each cut to 40 characters."""
    return " ".join(repr(argument[:40]) for argument in arguments)


def strange_arguments(draw: random.Random, place: Place) -> Case:
    """A command with one argument replaced by anything."""
    command, arguments = on_model(draw, place, str(place.base / "dense"))
    place_of = draw.randrange(len(arguments))
    arguments[place_of] = draw.choice(NUMBERS + WORDS)
    return Case(command, arguments, f"argument {place_of}: {arguments[place_of][:40]!r}")


def strangers_code(draw: random.Random, place: Place) -> Case:
    """A model that comes with code of its own."""
    model = place.copy(draw.choice(("dense", "pruned")))
    for name in ("evil", "modeling_pruned", "tokenization_evil"):
        (model / f"{name}.py").write_text(CODE)
    auto = {"AutoTokenizer": ["evil.E", "evil.E"], "AutoConfig": "evil.E", "AutoModelForCausalLM": "evil.E"}
    file = model / draw.choice(("config.json", "tokenizer_config.json"))
    values = {"auto_map": auto, "tokenizer_class": "E"} if draw.random() < 0.5 else {"auto_map": auto}
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    for name in ("gguf", "evil", "datasets"):
        (place.here / f"{name}.py").write_text(CODE)
    return Case(*on_model(draw, place, str(model)), f"auto_map in {file.name}")


def stopped(draw: random.Random, place: Place) -> Case:
    """A command that is stopped by a signal at a random moment."""
    command, arguments = on_model(draw, place, str(place.copy("pruned", here=True)))
    if command == "prune":
        text = str(place.base / "text.txt")
        given = SMALL | {"sparsity": 0.5, "calibration": text, "evaluation": text, "output": "new"}
        arguments = ["--model", str(place.base / "dense"), *flags(given)]
    stop = Stop(draw.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), draw.uniform(0.3, 5))
    return Case(command, arguments, f"{signal.Signals(stop.number).name} after {stop.seconds:.2f} s", stop)


CASES: dict[str, Callable[[random.Random, Place], Case]] = {
    "models": spoilt_model,
    "texts": spoilt_text,
    "tasks": spoilt_tasks,
    "records": spoilt_record,
    "progress": spoilt_progress,
    "places": spoilt_place,
    "flags": strange_flags,
    "arguments": strange_arguments,
    "code": strangers_code,
    "signals": stopped,
}
