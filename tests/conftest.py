"""Fixtures for all tests: tiny models of any shape, and `builtin`, SmolLM2."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests share most of their compiled programs with other modules, other processes and the last run.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# The compiler takes most of the tests' time. Tests that spend it on computing use `quick_code`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# XLA's older CPU code generator compiles in a third of the time. Its flag will be removed some day.
if "PYTEST_XDIST_WORKER" not in os.environ:
    quicker = "--xla_cpu_use_fusion_emitters=false"
    quicker += " --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    # Every process has one core. Parts of a program, for several threads, would cost it a fifth more time.
    quicker += " --xla_cpu_parallel_codegen_split_count=1"
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {quicker}".strip()}
    start = [sys.executable, "-c", "import jax; jax.devices()"]
    if not subprocess.run(start, env=os.environ | flags, capture_output=True, check=False).returncode:
        os.environ |= flags
# Give each of several processes its own core. If they shared cores, their threads would wait for each other.
if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

import hypothesis
import jax
import pytest
from filelock import FileLock
from tiny import EXTRA_TENSORS, make_tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, dynamic_module_utils

from tyr_jax.cli import prune
from tyr_jax.io.builtin import builtin_model
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.model import spec
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import random_params
from tyr_jax.runtime.cache import MOST_BYTES, cache_directory, processor

# Tests run beside others, on fast machines and on slow ones, so no example has a deadline.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

PROGRAMS = cache_directory() / "tests" / processor()
"""Compiled programs of all tests. JAX would look at every one of them before it adds one, if it had to bound
their size, as it does for the commands."""

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    size = sum(path.stat().st_size for path in PROGRAMS.glob("*"))
    if "PYTEST_XDIST_WORKER" not in os.environ and size > MOST_BYTES:
        shutil.rmtree(PROGRAMS)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(PROGRAMS)
    jax.config.update("jax_compilation_cache_dir", str(PROGRAMS))

DURATIONS = Path(__file__).with_name("durations.json")
"""Seconds of every test, by its id, from `scripts/record_durations.py`."""

UNKNOWN = 5.0
"""Seconds of a slow test that is not in `DURATIONS`."""

MOST_MAPS = 30_000
"""Number of memory maps after which a process drops its compiled programs."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files whose chosen tests take longest first, so that no process is left with a long one at the
    end."""
    recorded = json.loads(DURATIONS.read_text(encoding="utf-8")) if DURATIONS.is_file() else {}
    seconds: dict[Path, float] = defaultdict(float)
    for item in items:
        unknown = UNKNOWN if item.get_closest_marker("slow") else 0.0
        seconds[item.path] += recorded.get(item.nodeid, unknown)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_collection_finish() -> None:
    """Exempt everything imported so far from garbage collection, so that it is not scanned during tracing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def forget_many() -> None:
    """Drop compiled programs if their memory maps are many. Linux allows a process 65,530 by default."""
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="module")
def forget_compiled() -> Iterator[None]:
    """Drop compiled programs before there are too many.

    All tests together need more. Below `MOST_MAPS`, a module can use the programs of earlier ones.
    """
    yield
    forget_many()


@pytest.fixture
def forget_often() -> Iterator[None]:
    """Drop compiled programs before there are too many, in a module that alone would have them."""
    yield
    forget_many()


@pytest.fixture(scope="module")
def own_programs() -> Iterator[None]:
    """Do not share this module's compiled programs with other modules."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.fixture
def extra_tensors(own_programs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give all models extra tensors, which the decoder does not use."""
    monkeypatch.setattr(spec, "BLOCK_TENSORS", (*spec.BLOCK_TENSORS, *EXTRA_TENSORS))


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make transformers copy modelling files to a temporary directory, not to the user's."""
    cache = tmp_path / "modules"
    cache.mkdir()
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    monkeypatch.syspath_prepend(cache)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., ModelConfig]:
    return make_tiny_config


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of fewer than 290 tokens, with special tokens and a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the hat and the other thing"] * 9, trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    return result


@pytest.fixture(scope="session")
def save_tiny(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    """Writes a tiny random model, of any `make_tiny_config`, into a new directory."""

    def save(directory: Path, **overrides: Any) -> Path:
        config = make_tiny_config(**({"vocab": 300} | overrides))
        params = random_params(config, jax.random.key(0), scale=0.2)
        directory.mkdir()
        model = LoadedModel(config, params, tiny_tokenizer, {"model_type": "llama"}, {"eos_token_id": 2})
        save_model(directory, model)
        return directory

    return save


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a directory by its name, once for all processes of a test run; not to be written to."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    root.mkdir(exist_ok=True)

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(root / f"{name}.lock"):
            if not (root / name / "done").exists():
                shutil.rmtree(root / name, ignore_errors=True)
                (root / name).mkdir()
                make(root / name)
                (root / name / "done").touch()
        return root / name

    return made


@pytest.fixture(scope="session")
def tiny_model(save_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny random model; not to be written to."""
    return save_tiny(tmp_path_factory.mktemp("tiny") / "dense")


def write_words(path: Path) -> Path:
    """Write a few thousand random words."""
    words = ["the", "cat", "and", "hat", "other", "thing", "sat", "on", "a", "mat", "with", "old", "dogs"]
    path.write_text(" ".join(random.Random(0).choices(words, k=5000)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a few thousand random words."""
    return write_words(tmp_path_factory.mktemp("text") / "words.txt")


def arguments_of(model: Path, text: Path) -> list[str]:
    """Arguments of a run of seconds that prunes `model`, without `--output`."""
    small = """--sequence-length 32 --search-length 32 --calibration-tokens 512 --search-tokens 256
        --evaluation-length 32 --evaluation-windows 4 --neuron-chunk 4 --rounds 2 --levels 5
        --generations 2 --offspring 4 --survivors 2 1 --stage-tokens 32 64"""
    return ["--model", str(model), "--calibration", str(text), *small.split()]


@pytest.fixture(scope="session")
def tiny_arguments(tiny_model: Path, tiny_text: Path) -> list[str]:
    """Arguments of `tyr_jax.prune`, without `--output`, for a run of seconds. Later ones override them."""
    return arguments_of(tiny_model, tiny_text)


@pytest.fixture(scope="session")
def pruned(save_tiny: Callable[..., Path], shared: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A searched model at 50% whose layers differ, beside the `dense` one; not to be written to."""

    def make(directory: Path) -> None:
        dense, text = save_tiny(directory / "dense"), write_words(directory / "words.txt")
        prune.main([*arguments_of(dense, text), "--sparsity", "0.5", "--output", str(directory / "pruned")])

    return shared("tiny", make) / "pruned"


@pytest.fixture(scope="session")
def tiny_options(tiny_text: Path) -> dict[str, Any]:
    """The same for `tyr_jax.prune_model`, as keywords and with a single round."""
    text = {"sequence_length": 32, "search_length": 32, "calibration_tokens": 512, "search_tokens": 256}
    measured = {"evaluation_length": 32, "evaluation_windows": 4}
    rounds = {"rounds": 1, "levels": 5, "generations": 2, "offspring": 4, "survivors": (2, 1)}
    rest = {"calibration": tiny_text, "neuron_chunk": 4, "stage_tokens": (32, 64)}
    return text | measured | rounds | rest


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    return builtin_model()


@pytest.fixture(scope="session")
def smollm2() -> LoadedModel:
    return load_model("builtin")


def write_task(directory: Path, name: str, split: str, rows: list[dict[str, Any]]) -> None:
    """Write a task's data, as one configuration with one split."""
    directory.mkdir(parents=True)
    card = f"configs:\n- config_name: {name}\n  data_files:\n  - split: {split}\n    path: {split}.jsonl"
    (directory / "README.md").write_text(f"---\n{card}\n---\n")
    (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four questions of ARC-Easy and three of WinoGrande, under their names on the hub, without examples."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    tasks = tmp_path / "tasks"
    choices = {"text": ["a", "b c", "d e f"], "label": ["A", "B", "C"]}
    rows = [
        {"id": str(n), "question": "a b c"[: 2 * n + 1], "choices": choices, "answerKey": "ABC"[n % 3]}
        for n in range(4)
    ]
    write_task(tasks / "allenai" / "ai2_arc", "ARC-Easy", "test", rows)
    rows = [
        {"sentence": f"a {'b ' * n}_ c d", "option1": "e", "option2": "f g", "answer": "12"[n % 2]}
        for n in range(3)
    ]
    write_task(tasks / "allenai" / "winogrande", "winogrande_xl", "validation", rows)
    return tasks
