"""Malformed cases: a command line and the files that it meets. Each case depends only on its seed."""

import json
import os
import random
import shutil
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from fuzzing import growth, mutation
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
    interrupted(place)
    kept = place.here / ".new.unfinished"
    files = sorted(path for path in kept.rglob("*") if path.is_file() and path.name != "lock")
    file = draw.choice(files)
    how = (
        mutation.spoil_place(draw, file, place.given)
        if draw.random() < 0.2
        else mutation.spoil_file(draw, file)
    )
    return Case("prune", continued(place), how)


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


def foreign_files(draw: random.Random, place: Place) -> Case:
    """An output that holds the user's own files as well, or whose files the user changed."""
    name = draw.choice(("new", "pruned", "recovered"))
    if name == "new":
        (place.here / name).mkdir()
        for each in draw.sample(("pruned", "recovered"), draw.choice((1, 2))):
            shutil.copytree(place.base / each, place.here / name / each)
    else:
        place.copy(name, here=True)
    folder = draw.choice(
        [path for path in (place.here / name, *(place.here / name).rglob("*")) if path.is_dir()]
    )
    if draw.random() < 0.7:
        mine = folder / draw.choice(FOREIGN)
        mine.parent.mkdir(exist_ok=True)
        how = f"a file of the user's, {mine.relative_to(place.here)}"
    else:
        mine = draw.choice(sorted(path for path in (place.here / name).rglob("*") if path.is_file()))
        how = f"{mine.relative_to(place.here)} was changed"
    mine.write_text(f"{MINE} {draw.random()}")
    command, arguments = "report", [str(place.here / name)]
    while command in ("report", "generate", "evaluate") and draw.random() < 0.9:
        command, arguments = on_model(draw, place, str(place.base / "dense"))
    if "--output" in arguments:
        arguments[arguments.index("--output") + 1] = str(mine if command == "export" else name)
    if command == "benchmark":
        arguments += ["--output", str(mine)]
    more = ["--overwrite"] if command in ("prune", "finetune", "export", "benchmark") else []
    return Case(command, [*arguments, *more], how)


MINE = "the user's own"
"""How the user's own files begin, which no command may change or delete."""

FOREIGN = (
    *("notes.txt", "README.md", "vocab.json", "model-mine_IQ2.gguf", "additional_chat_templates/thesis.docx"),
    *("model.safetensors", "config.json", ".hidden", "manifest.json", "events.jsonl", "report.html"),
)
"""Names of files that a user may put into a result."""


def changed_between(draw: random.Random, place: Place) -> Case:
    """An interrupted run whose model changed before it is continued."""
    model = interrupted(place)
    file = draw.choice(sorted(model.iterdir()))
    if file.suffix == ".json" and draw.random() < 0.6:
        values = json.loads(file.read_text())
        known = [key for key, value in values.items() if isinstance(value, int | float) and value > 1]
        key = draw.choice(known or ["x"])
        values[key] = values.get(key, 1) * 2
        file.write_text(json.dumps(values))
        how = f"{key} of {file.name} is doubled"
    else:
        how = mutation.spoil_file(draw, file)
    return Case("prune", continued(place), how)


def interrupted(place: Place) -> Path:
    """Put an interrupted run and its model into the current directory, and return the model."""
    place.copy(".new.unfinished", here=True)
    return place.copy("dense", here=True)


def continued(place: Place) -> list[str]:
    """The command of the interrupted run."""
    text = str(place.base / "text.txt")
    given = SMALL | {"sparsity": 0.5, "calibration": text, "evaluation": text, "output": "new"}
    return ["--model", "dense", *flags(given)]


def planted_modules(draw: random.Random, place: Place) -> Case:
    """Modules and packages in the current directory that are called as installed ones are."""
    names = sorted({name.partition(".")[0] for name in (*sys.modules, "lm_eval", "datasets", "llama_cpp")})
    for name in draw.sample(names, 20):
        folder = draw.random() < 0.5
        file = place.here / name / "__init__.py" if folder else place.here / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(CODE)
    command, arguments = on_model(draw, place, str(place.base / "pruned"))
    return Case(command, arguments, "planted modules")


def growing(draw: random.Random, place: Place) -> Case:
    """A small file that asks for much."""
    name, make = draw.choice(list(growth.BOMBS.items()))
    given = make(draw, place)
    if name.startswith("tasks"):
        arguments = [str(place.base / "dense"), "--tasks", "arc_easy", "--data-dir", given, "--limit", "2"]
        return Case("evaluate", arguments, name)
    return Case(*(on_model if name.startswith("model") else on_text)(draw, place, given), name)


def special_paths(draw: random.Random, place: Place) -> Case:
    """An option that takes a path, given what is not a regular file or directory."""
    fifo, socket_ = place.here / "fifo", place.here / "socket"
    os.mkfifo(fifo)
    os.mknod(socket_, stat.S_IFSOCK | 0o600)
    strange = draw.choice(
        (*map(str, (fifo, socket_, place.here, place.base)), "/dev/zero", "/dev/full", "/dev/null", "/", "~")
    )
    command, arguments = on_model(draw, place, str(place.base / "dense"))
    option = draw.choice(["MODEL", *PATHS[command]])
    if option == "MODEL":
        arguments = [strange if argument == str(place.base / "dense") else argument for argument in arguments]
    elif option in arguments:
        arguments[arguments.index(option) + 1] = strange
    else:
        arguments += [option, strange, *WITH.get(option, ())]
    return Case(command, arguments, f"{option} is {strange}")


PATHS = {
    "prune": ("--output", "--calibration", "--evaluation", "--latencies", "--family", "--search"),
    "evaluate": ("--evaluation", "--data-dir", "--family"),
    "finetune": ("--output", "--data", "--evaluation", "--teacher", "--family"),
    "export": ("--output",),
    "generate": ("--family",),
    "benchmark": ("--output",),
    "report": (),
}
"""Options that take a path, or a reference to a file, by command."""

WITH = {"--latencies": ("--budget", "latency"), "--data-dir": ("--tasks", "arc_easy")}
"""Options without which others are not read."""


def wrong_types(draw: random.Random, place: Place) -> Case:
    """A call of the Python API with a value of another type than it expects."""
    dense, text = str(place.base / "dense"), str(place.base / "text.txt")
    small = SMALL | {"rounds": 0, "calibration": text, "evaluation": text}
    small_evaluation = {name: value for name, value in SMALL.items() if name.startswith("evaluation")}
    calls: dict[str, dict[str, Any]] = {
        "prune_model": {"model": dense, "sparsity": 0.5, "preset": "quick", "output": "new", **small},
        "plan_pruning": {"model": dense, "sparsity": 0.5, "devices": 1, "flops": 1e12},
        "recover_model": {"model": str(place.base / "pruned"), "teacher": dense, "data": text, "tokens": 64},
        "evaluate_model": {"model": dense, "evaluation": text, **small_evaluation},
        "generate_text": {"model": dense, "prompts": "the cat", "max_tokens": 2},
        "export_model": {"model": dense, "path": "x.gguf"},
        "benchmark_model": {"dense": dense, "pruned": dense, "prompts": 4, "batches": 1, "tokens": 1},
        "load_model": {"name": dense, "dtype": "float32"},
    }
    name, given = draw.choice(list(calls.items()))
    wrong = draw.choice([*given, "settings"] if name != "load_model" else [*given])
    value = draw.choice(OBJECTS)
    given[wrong] = value
    return Case("api", [name, repr(given)], f"{name}({wrong}={value})")


class Code(str):
    """An expression; its `repr` is the expression itself."""

    def __repr__(self) -> str:
        return str(self)


OBJECTS = tuple(
    map(
        Code,
        (
            *(
                "None",
                "5",
                "-1",
                "1.5",
                "float('nan')",
                "'x'",
                "''",
                "b'x'",
                "[]",
                "{}",
                "[None]",
                "(1, 'x')",
            ),
            *("object()", "print", "True", "1j", "10**30", "{'a': 1}", "'\\x00'", "Path('/')", "int"),
        ),
    )
)
"""Values of any type, as expressions."""


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
    "foreign": foreign_files,
    "changed": changed_between,
    "modules": planted_modules,
    "growth": growing,
    "paths": special_paths,
    "types": wrong_types,
}
