"""The Python API on a tiny model, used as in a notebook and compared with the commands."""

import ast
import contextlib
import dataclasses
import inspect
import json
import os
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import Died, die_at
from record_samples import read_events

import tyr_jax
from tyr_jax import api
from tyr_jax.cli import benchmark, evaluate, export, finetune, generate, prune
from tyr_jax.errors import UserError
from tyr_jax.model.decoder import forward
from tyr_jax.report.render import as_text
from tyr_jax.report.tables import perplexity_table
from tyr_jax.results import PruneResult, RecoverResult
from tyr_jax.run import resume
from tyr_jax.run.models import GivenModel, NamedModel
from tyr_jax.search.contract import Query
from tyr_jax.settings import PRESETS
from tyr_jax.workspace.output import work_paths

pytestmark = pytest.mark.slow

PROMPT = "the cat and the hat"
SINGLE = ["--rounds", "1"]
"""The difference between `tiny_options` and `tiny_arguments`."""


@pytest.fixture(scope="module")
def result(tiny_model: Path, tiny_options: dict[str, Any]) -> PruneResult:
    """A model that was pruned without an output directory."""
    return tyr_jax.prune_model(tiny_model, sparsity=0.5, progress=False, **tiny_options)


@pytest.fixture(scope="module")
def written(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of the command for the same run; not to be written to."""
    output = tmp_path_factory.mktemp("command") / "pruned"
    prune.main([*tiny_arguments, *SINGLE, "--sparsity", "0.5", "--output", str(output)])
    return output


@pytest.fixture(scope="module")
def few(tiny_text: Path) -> dict[str, Any]:
    """Options of a training that takes seconds."""
    sizes = {"tokens": 1024, "sequence_length": 32, "step_tokens": 256, "evaluation_windows": 4, "rank": 4}
    return {"data": tiny_text, "learning_rate": 0.01, "progress": False, **sizes}


def names_of(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def same_weights(one: tyr_jax.LoadedModel, other: tyr_jax.LoadedModel) -> bool:
    """Whether two models are the same, bit for bit."""
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return one.config == other.config and all(np.array_equal(a, b) for a, b in pairs)


# What there is


def test_nothing_is_imported_before_it_is_used() -> None:
    heavy = "{'jax', 'numpy', 'transformers', 'rich', 'tyro', 'orbax', 'tyr_jax.api'}"
    code = f"import sys, tyr_jax; print(sorted({heavy} & set(sys.modules)), tyr_jax.prune_model.__name__)"
    environment = os.environ | {"PYTHONPATH": str(Path(tyr_jax.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[] prune_model\n"


def test_every_name_is_there_documented_and_known_to_type_checkers() -> None:
    assert sorted(tyr_jax.__all__) == list(tyr_jax.__all__)
    for name in tyr_jax.__all__:
        value = getattr(tyr_jax, name)
        assert name in dir(tyr_jax)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert len(value.__doc__ or "") > 10, name
    nodes = ast.parse(Path(tyr_jax.__file__).read_text()).body
    checked = next(
        node for node in nodes if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    names = {alias.name for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names | {"UserError", "__version__"} == set(tyr_jax.__all__)
    assert not hasattr(tyr_jax, "no_such_name")


def test_modules_that_are_commands_stay_modules() -> None:
    for name in ("prune", "evaluate", "export", "generate", "benchmark", "finetune", "report"):
        assert name not in tyr_jax.__all__
        assert inspect.ismodule(__import__(f"tyr_jax.{name}", fromlist=["main"]))


@pytest.mark.parametrize(
    ("function", "arguments", "apart"),
    [
        (api.prune_model, prune.PruneArguments, {"plan", "hosts", "components"}),
        (api.recover_model, finetune.FinetuneArguments, set()),
        (api.evaluate_model, evaluate.EvaluateArguments, {"json"}),
        (api.generate_text, generate.GenerateArguments, set()),
        (api.stream_text, generate.GenerateArguments, {"prompts"}),
        (api.export_model, export.ExportArguments, {"output", "format"}),
        (api.benchmark_model, benchmark.BenchmarkArguments, {"output", "overwrite"}),
    ],
)
def test_a_command_and_its_function_share_their_options(
    function: Callable[..., Any], arguments: type, apart: set[str]
) -> None:
    """In Python, the options of `reading` are passed to `load_model`."""
    taken, given = typing.get_type_hints(function), typing.get_type_hints(arguments)
    assert taken["settings"] == given["settings"] | None
    assert {field.name for field in dataclasses.fields(arguments)} - taken.keys() == apart | {"reading"}
    parameters = inspect.signature(tyr_jax.load_model).parameters
    assert {field.name for field in dataclasses.fields(given["reading"])} <= parameters.keys()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: tyr_jax.evaluate_model("x", window=4), "there is no option 'window'; perhaps"),
        (lambda: tyr_jax.evaluate_model("x", tasks=3), "tasks is 3, but must be a string"),
        (
            lambda: tyr_jax.generate_text("x", "y", max_token=4),
            "there is no option 'max_token'; perhaps 'max_tokens' was meant",
        ),
        (lambda: tyr_jax.benchmark_model("x", "y", prompts="many"), "prompts is 'many', but must be a whole"),
        (
            lambda: tyr_jax.export_model("x", settings=tyr_jax.ExportSettings(neuron_multiple=0)),
            "--neuron-multiple is 0, but must be at least 1",
        ),
    ],
)
def test_mistakes_in_options(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert str(raised.value).startswith(sentence)


# Models


def test_ignored_keys_are_those_of_a_model(
    tiny_model: Path, tiny_options: dict[str, Any], few: dict[str, Any], tmp_path: Path
) -> None:
    """What is made of a model is read again without naming them; another model is not."""
    dense = shutil.copytree(tiny_model, tmp_path / "dense")
    values = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(values | {"frobnicate": 3}))
    model = tyr_jax.load_model(str(dense), ignore_keys=["frobnicate"])
    options = tiny_options | {"rounds": 0, "sparsity": 0.5, "progress": False}
    result = tyr_jax.prune_model(model, output=tmp_path / "pruned", **options)
    assert "llama-cli" in (tmp_path / "pruned" / "README.md").read_text()
    assert result.model.hf_config["frobnicate"] == 3
    trained = tyr_jax.recover_model(result, output=tmp_path / "recovered", **few)
    assert trained.model.hf_config["frobnicate"] == 3
    for directory in (dense, tmp_path / "pruned"):
        with pytest.raises(UserError, match="frobnicate"):
            tyr_jax.prune_model(directory, **options)


# Pruning


def test_a_result_has_the_model_and_what_is_known_of_it(result: PruneResult, written: Path) -> None:
    summary = json.loads((written / "summary.json").read_text())
    assert json.loads(json.dumps(result.summary)) == result.summary
    for key in ("distribution", "dense", "uniform", "searched", "rounds", "texts"):
        assert result.summary[key] == summary[key]
    assert result.distribution == summary["distribution"]
    assert result.kept.tolist() == [summary["distribution"][kind] for kind in ("attention", "ffn")]
    assert result.quality["words.txt"].kl == summary["searched"]["quality"]["words.txt"]["kl"]
    assert [layer.ffn for layer in result.model.config.layers] == result.distribution["ffn"]
    logits = forward(result.model.params, jnp.arange(32)[None], result.model.config)
    assert np.isfinite(np.asarray(logits)).all()
    assert result.directory is None
    assert same_weights(result.model, tyr_jax.load_model(str(written)))


def test_nothing_is_written_before_it_is_saved(
    tiny_model: Path, tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tyr_jax.prune_model(tiny_model, progress=False, **(tiny_options | {"rounds": 0}))
    assert names_of(tmp_path) == set()


def test_what_is_saved_is_what_the_command_writes(result: PruneResult, written: Path, tmp_path: Path) -> None:
    assert result.save(tmp_path / "saved") == tmp_path / "saved"
    assert names_of(tmp_path) == {"saved"}
    assert names_of(tmp_path / "saved") == names_of(written)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "modeling_pruned.py"):
        assert (tmp_path / "saved" / name).read_bytes() == (written / name).read_bytes()
    ours, theirs = (
        {event: len(read_events(directory / "events.jsonl", event)) for event in ("round", "quality", "done")}
        for directory in (tmp_path / "saved", written)
    )
    assert ours == theirs


def test_what_is_there_is_only_replaced_where_asked(result: PruneResult, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"exists and is not empty; .*--overwrite"):
        result.save(tmp_path)
    assert names_of(tmp_path) == {"notes.txt"}
    with pytest.raises(UserError, match=r"holds notes\.txt, which this program did not write"):
        result.save(tmp_path, overwrite=True)
    (tmp_path / "notes.txt").unlink()
    for overwrite in (False, True):
        result.save(tmp_path, overwrite=overwrite)
        assert "summary.json" in names_of(tmp_path)
    finished = work_paths(tmp_path / "other").finished
    (finished / "piece").mkdir(parents=True)
    with pytest.raises(UserError, match="can still be continued"):
        result.save(tmp_path / "other")
    assert (finished / "piece").is_dir()


def test_the_recorded_command_line_makes_the_model_again(
    result: PruneResult, tmp_path: Path, written: Path
) -> None:
    prune.main([*result.summary["arguments"], "--output", str(tmp_path / "again")])
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (written / "model.safetensors").read_bytes()


def test_in_a_directory_it_works_as_the_command(
    tiny_model: Path,
    tiny_options: dict[str, Any],
    written: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: dict[str, Any] = {"sparsity": 0.5, "output": tmp_path / "pruned", **tiny_options}

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        die_at(patch, "round")
        tyr_jax.prune_model(tiny_model, **asked)
    assert names_of(tmp_path) == {".pruned.unfinished"}
    with pytest.raises(UserError, match="used a different --seed"):
        tyr_jax.prune_model(tiny_model, seed=1, **asked)
    capsys.readouterr()
    result = tyr_jax.prune_model(tiny_model, **asked)
    shown = capsys.readouterr()
    assert resume.KEPT in shown.err
    assert shown.out == ""
    assert names_of(tmp_path) == {"pruned"}
    assert result.directory == tmp_path / "pruned"
    assert result.summary == json.loads((tmp_path / "pruned" / "summary.json").read_text())
    assert (tmp_path / "pruned" / "model.safetensors").read_bytes() == (
        written / "model.safetensors"
    ).read_bytes()
    assert same_weights(result.model, tyr_jax.load_model(str(written)))
    with pytest.raises(UserError, match="exists and is not empty"):
        tyr_jax.prune_model(tiny_model, **asked)


def test_several_sparsities_have_a_result_each(
    tiny_model: Path, tiny_options: dict[str, Any], tiny_arguments: list[str], tmp_path: Path
) -> None:
    results = tyr_jax.prune_model(tiny_model, sparsity=[0.25, 0.5], progress=False, **tiny_options)
    prune.main([*tiny_arguments, *SINGLE, "--sparsity", "0.25", "0.5", "--output", str(tmp_path / "both")])
    for result, name in zip(results, ("0.25", "0.5"), strict=True):
        assert result.summary["sparsity"]["asked"] == float(name)
        assert result.argument == f"pruned/{name}"
        assert same_weights(result.model, tyr_jax.load_model(str(tmp_path / "both" / name)))
        assert {entry["sparsity"] for entry in result.events.written("round")} == {float(name)}
    settings = dataclasses.replace(PRESETS["quick"], sparsity=(0.25, 0.5))
    with pytest.raises(UserError, match=r"give them as sparsity=settings\.sparsity"):
        tyr_jax.prune_model(settings=settings)


def test_whole_settings_and_a_loaded_model(
    tiny_model: Path, tiny_options: dict[str, Any], result: PruneResult
) -> None:
    dense = tyr_jax.load_model(str(tiny_model))
    before = jax.tree.map(np.array, dense.params)
    settings = api.with_options(PRESETS["standard"], tiny_options | {"sparsity": 0.5, "seed": 3})
    again = tyr_jax.prune_model(dense, settings=settings, seed=0, progress=False)
    assert same_weights(again.model, result.model)
    assert again.summary["settings"] == result.summary["settings"]
    for array, expected in zip(jax.tree.leaves(dense.params), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(array, expected)
    half = tyr_jax.prune_model(dense, **(tiny_options | {"rounds": 0, "compute_dtype": "bfloat16"}))
    assert half.model.params["embed"].dtype == jnp.bfloat16
    assert tyr_jax.evaluate_model(half, progress=False).texts[0].perplexity > 1
    with pytest.raises(UserError, match=r"is pruned already: its layers differ"):
        tyr_jax.prune_model(result, **tiny_options)


def test_weights_on_disk(
    tiny_model: Path, tiny_options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = tiny_options | {"rounds": 0, "progress": False}
    whole, stored = (tyr_jax.prune_model(tiny_model, offload=where, **options) for where in (False, True))
    measured = [
        tyr_jax.evaluate_model(one, progress=False, trust_record=True).texts[0].perplexity
        for one in (whole, stored)
    ]
    assert measured[0] == pytest.approx(measured[1], rel=1e-4)
    with pytest.raises(UserError, match=r"--offload reads weights from disk, but .* is loaded already"):
        tyr_jax.prune_model(whole.model, offload=True, **options)
    assert names_of(tmp_path) == set()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (
            {"calibration_token": 8},
            "there is no option 'calibration_token'; perhaps 'calibration_tokens' was",
        ),
        ({"rounds": "two"}, "rounds is 'two', but must be a whole number"),
        ({"preset": "fast"}, "preset is 'fast', but must be one of 'quick', 'standard', 'paper'"),
        ({"preset": "quick", "settings": PRESETS["quick"]}, "preset and settings both say"),
        ({"sparsity": 2}, "--sparsity is 2.0, but must be between 0 and 1, ends excluded"),
        ({"sparsity": "half"}, "sparsity is 'half', but must be a number"),
        ({"overwrite": True}, "overwrite is about the output directory"),
        ({"push_to_hub": "user/model", "output": "x"}, "push_to_hub is for the command; call push_to_hub of"),
        ({"model": "./gone"}, "no such file or directory: './gone'"),
    ],
)
def test_mistakes(asked: dict[str, Any], sentence: str, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        tyr_jax.prune_model(**({"model": tiny_model, "progress": False} | asked))
    assert str(raised.value).startswith(sentence)


# How results show themselves


class Figures(HTMLParser):
    """Counts figures, and notes what would be fetched."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.figures, self.links = 0, []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.figures += tag == "svg"
        self.links += [value for name, value in attrs if name in ("src", "href")]


def test_a_result_shows_itself(result: PruneResult) -> None:
    lines = repr(result).splitlines()
    assert lines[0] == "pruned to 50.0% sparsity"
    assert str(result) == repr(result)
    final = result.quality["words.txt"]
    assert any("… KL to dense" in line and f"{final.kl:.4f}" in line for line in lines)
    shown = Figures(source := result._repr_html_())
    assert (shown.figures, shown.links) == (5, [])
    assert f"<td>{final.perplexity:.2f}</td>" in source
    assert not source.startswith("<!doctype")
    assert source.count("<h1>") == 1


def test_figures_show_themselves(result: PruneResult) -> None:
    measured = tyr_jax.evaluate_model(result, progress=False)
    assert repr(measured) == as_text([perplexity_table(result.name, measured.texts)])
    assert f"<td>{measured.texts[0].perplexity:.3f}</td>" in measured._repr_html_()


# What takes a model


def test_a_result_measures_as_it_did(result: PruneResult, written: Path) -> None:
    (ours,), (theirs,) = (
        tyr_jax.evaluate_model(model, progress=False, trust_record=True).texts
        for model in (result, str(written))
    )
    assert ours == theirs
    assert ours.perplexity_when_made == result.quality["words.txt"].perplexity
    assert ours.perplexity == pytest.approx(ours.perplexity_when_made, rel=1e-4)
    few = tyr_jax.evaluate_model(result.model, evaluation="builtin:topics", evaluation_length=16, bos=True)
    assert [(text.text, text.length, text.bos) for text in few.texts] == [("builtin:topics", 16, True)]


def test_tasks(result: PruneResult, questions: Path) -> None:
    scores = tyr_jax.evaluate_model(result, tasks="arc_easy, winogrande", data_dir=questions, limit=3)
    assert {(score.task, score.questions) for score in scores.tasks} == {("arc_easy", 3), ("winogrande", 3)}
    assert "tasks of" in repr(scores)
    assert scores.as_json()["tasks"][0]["shots"] == 0
    with pytest.raises(UserError, match=r"tasks bring their own text, .*\(evaluation\)"):
        api.evaluate_model(result, tasks=["arc_easy"], evaluation="builtin")


def test_text(result: PruneResult, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"max_tokens": 6, "temperature": 1.5, "seed": 3, "progress": False}
    ours = tyr_jax.generate_text(result, [PROMPT, "other"], **options)
    assert ours == tyr_jax.generate_text(written, [PROMPT, "other"], **options)
    settings = tyr_jax.GenerationSettings(seed=3, sampling=tyr_jax.Sampling(temperature=1.5))
    again = tyr_jax.generate_text(result, [PROMPT, "other"], settings=settings, max_tokens=6, progress=False)
    assert again == ours
    (alone,) = tyr_jax.generate_text(result.model, PROMPT, **options)
    assert "".join(tyr_jax.stream_text(result, PROMPT, **options)) == alone
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UserError, match="--max-tokens is 0, but must be at least 1"):
        tyr_jax.stream_text(result, PROMPT, max_tokens=0)
    with pytest.raises(UserError, match="top_k is 'all', but must be a whole number"):
        tyr_jax.generate_text(result, PROMPT, top_k="all")


def test_a_file_for_llama_cpp(result: PruneResult, written: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("ours", "theirs")]
    for model, path in zip((result, written), paths, strict=True):
        assert tyr_jax.export_model(model, path, quantize="q8_0", progress=False) == path
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with pytest.raises(UserError, match="exists; choose another"):
        tyr_jax.export_model(result, paths[0])
    with pytest.raises(UserError, match="quantize is 'q7', but must be one of 'f32'"):
        tyr_jax.export_model(result, tmp_path / "x", quantize="q7")


def test_a_plan(tiny_model: Path, tiny_options: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    planned = tyr_jax.plan_pruning(tiny_model, sparsity=0.5, devices=8, flops=1e14, **tiny_options)
    loaded = tyr_jax.load_model(str(tiny_model))
    assert planned == tyr_jax.plan_pruning(loaded, sparsity=0.5, devices=8, flops=1e14, **tiny_options)
    assert repr(planned).startswith("memory of each of 8 devices in GB, and FLOPs")
    assert max(need.memory for need, _ in planned.needs) > 0
    with pytest.raises(UserError, match="--plan-devices is 0, but must be above 0"):
        tyr_jax.plan_pruning(tiny_model, devices=0)


def test_speed(tiny_model: Path, result: PruneResult, tmp_path: Path) -> None:
    directory = result.save(tmp_path / "saved")
    one = {"prompts": 16, "batches": 1, "tokens": 2, "repeats": 1}
    found = tyr_jax.benchmark_model(tiny_model, result, progress=False, **one)
    assert found.models == {"dense": str(tiny_model), "pruned": result.name}
    assert [timing.prompt for timing in found.timings] == [16, 16]
    names = [path.name for path in found.save(directory / "benchmark.json")]
    assert names == ["benchmark.json", "report.html", "README.md"]
    assert "Not measured yet" not in (directory / "report.html").read_text()
    assert [path.name for path in found.save(tmp_path / "figures.json")] == ["figures.json"]


# Recovery


@pytest.fixture(scope="module")
def recovered(result: PruneResult, few: dict[str, Any]) -> RecoverResult:
    """The pruned model, trained without an output directory."""
    return tyr_jax.recover_model(result, **few)


def test_what_was_trained_is_what_the_command_trains(
    recovered: RecoverResult, written: Path, tmp_path: Path
) -> None:
    model, *arguments = recovered.recovery["arguments"]
    assert model == "pruned"
    finetune.main([str(written), *arguments, "--output", str(tmp_path / "theirs")])
    recovered.save(tmp_path / "ours")
    assert names_of(tmp_path / "ours") == names_of(tmp_path / "theirs")
    ours, theirs = (tmp_path / where for where in ("ours", "theirs"))
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    configs = [json.loads((directory / "config.json").read_text()) for directory in (ours, theirs)]
    assert configs[0] == configs[1]
    record = json.loads((theirs / "recovery.json").read_text())
    for key in ("losses", "quality", "fingerprints", "learning_rate"):
        assert recovered.recovery[key] == record[key]
    assert recovered.quality == record["quality"]["recovered"]


def test_a_recovered_model_shows_itself_and_measures_as_it_did(recovered: RecoverResult) -> None:
    assert "gap closed" in repr(recovered)
    assert Figures(recovered._repr_html_()).figures == 6
    (text,) = tyr_jax.evaluate_model(recovered, progress=False).texts
    assert text.perplexity_when_made == recovered.quality["words.txt"]["perplexity"]
    assert text.perplexity == pytest.approx(text.perplexity_when_made, rel=1e-5)


def test_a_teacher_in_memory_and_a_directory(
    recovered: RecoverResult, result: PruneResult, tiny_model: Path, few: dict[str, Any], tmp_path: Path
) -> None:
    dense = tyr_jax.load_model(str(tiny_model))
    again = tyr_jax.recover_model(result, teacher=dense, output=tmp_path / "out", **few)
    assert again.directory == tmp_path / "out"
    assert same_weights(again.model, recovered.model)
    alone = tyr_jax.recover_model(dense, goal="next-token", evaluation_length=32, **few)
    assert alone.summary is None
    assert "<svg" not in alone._repr_html_()
    assert alone.recovery["arguments"][0] == str(tiny_model)
    with pytest.raises(UserError, match="there is no option 'learning_rat'"):
        tyr_jax.recover_model(result, learning_rat=1)
    with pytest.raises(UserError, match="--rank is 0, but must be at least 1"):
        tyr_jax.recover_model(result, **(few | {"rank": 0}))


# Parts of a user's own


@dataclasses.dataclass(frozen=True)
class Standing(tyr_jax.Search):
    """A search that asks for its start, and keeps it."""

    generations: int = 2
    asked: int = 1

    def init(self, key: jax.Array, start: np.ndarray, space: Any) -> Any:
        return np.repeat(start[None], self.asked, axis=0)

    def ask(self, state: Any) -> Query:
        return Query(state, np.arange(1))

    def tell(self, state: Any, candidates: np.ndarray, fitness: np.ndarray) -> Any:
        return state

    def best(self, state: Any) -> np.ndarray:
        return np.asarray(state[0])


def test_parts_are_given_as_they_are_or_by_name(tiny_model: Path, tiny_options: dict[str, Any]) -> None:
    evolution = ("generations", "offspring", "survivors", "stage_tokens")
    rest = {name: value for name, value in tiny_options.items() if name not in evolution}
    found = tyr_jax.prune_model(
        tiny_model,
        progress=False,
        search=Standing(asked=3),
        objective="hidden+kl",
        alpha=2.0,
        **rest,
    )
    settings = found.summary["settings"]
    assert settings["search"] == [{"search": Standing.name, "generations": 2, "asked": 3}]
    assert settings["objective"] == {"objective": "hidden+kl", "alpha": 2.0, "beta": 1.0}
    assert found.distribution == found.summary["uniform"]["kept"]
    made_by = shlex.join(found.summary["arguments"])
    assert f"--search {Standing.name} --asked 3" in made_by
    assert "--objective hidden+kl --alpha 2.0" in made_by


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"search": "evolve"}, "--search is evolve, but must be evolution, random, .*, or MODULE:NAME"),
        ({"search": 3}, "search is 3, but must be a name, MODULE:NAME, or an instance of Search"),
        ({"objective": Standing()}, "but must be a name, MODULE:NAME, or an instance of Objective"),
        ({"search": Standing(), "offspring": 3}, "there is no option 'offspring'"),
    ],
)
def test_what_is_no_part(part: dict[str, Any], sentence: str, tiny_model: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        tyr_jax.prune_model(tiny_model, progress=False, **part)


def test_the_home_directory_in_a_models_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The record beside the model is found, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/x", Path("~/x"), NamedModel("~/x")):
        assert GivenModel(given).name == str(tmp_path / "x")


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("load_model", {"name": None}, "a model is named by a text or a path, not by None"),
    ("load_model", {"dtype": "int8"}, "dtype is 'int8', but must be one of float32, bfloat16, float16"),
    ("load_model", {"dtype": "foo"}, "dtype is 'foo', but must be one of"),
    ("load_model", {"ignore_keys": 5}, "ignore_keys is 5, but must be a string"),
    ("plan_pruning", {"sparsity": 10**400}, "sparsity is too large a number"),
    ("prune_model", {"arguments": 5}, "arguments is 5, but must be a string"),
    ("plan_pruning", {"model": 5}, "a model is a name, a path, what load_model returns or a result, not 5"),
    ("plan_pruning", {"devices": "x"}, "--plan-devices is 'x', but must be a whole number"),
    ("plan_pruning", {"flops": "x"}, "--plan-flops is 'x', but must be a number"),
    ("evaluate_model", {"model": object()}, "a model is a name, .*, not <object"),
    ("evaluate_model", {"settings": 3}, "settings is 3, but must be EvaluationSettings"),
    ("evaluate_model", {"tasks": ""}, "--tasks is empty, but must be names of tasks"),
    ("evaluate_model", {"tasks": "x", "limit": 0}, "--limit is 0, but must be at least 1"),
    ("evaluate_model", {"tasks": "x", "num_fewshot": -1}, "--num-fewshot is -1, but must be 0 or more"),
    ("generate_text", {"prompts": None}, "a prompt is None, but must be a text"),
    ("generate_text", {"prompts": ["a", 2]}, "a prompt is 2, but must be a text"),
    ("export_model", {"path": 5}, "path is 5, but must be a path"),
    ("prune_model", {"preset": 5}, "preset is 5, but must be one of 'quick', 'standard', 'paper'"),
    ("prune_model", {"settings": 5}, "settings is 5, but must be Settings"),
    ("prune_model", {"output": "/"}, "output / is the root of the file system; choose a directory"),
    ("recover_model", {"model": 3}, "a model is a name, .*, not 3"),
    ("benchmark_model", {"dense": 7, "pruned": 7}, "a model is a name, .*, not 7"),
)


@pytest.mark.parametrize(("function", "given", "sentence"), WRONG)
def test_values_of_another_type(
    function: str, given: dict[str, Any], sentence: str, tiny_model: Path
) -> None:
    model = (
        {} if function == "benchmark_model" else {"name" if function == "load_model" else "model": tiny_model}
    )
    prompts = {"prompts": "a"} if function == "generate_text" else {}
    with pytest.raises(UserError, match=sentence):
        getattr(tyr_jax, function)(**(model | prompts | given))
