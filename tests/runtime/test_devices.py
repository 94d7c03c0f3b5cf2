"""Several devices give the same results as one. Tests run in processes whose CPU counts as several devices.

Programs for eight devices are compiled, and run for two. They also run on eight, among the long tests.
"""

import functools
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import make_tiny_config

from tyr_jax.cli import finetune, prune
from tyr_jax.pruning import obs
from tyr_jax.runtime import devices

pytestmark = pytest.mark.slow

RUN, COMPILED = 2, 8
"""Devices of the runs, and of the programs whose communication is looked at."""

TESTS = Path(__file__).parents[1]
SHARED = str(TESTS), str(TESTS.parent / "scripts")
"""Directories of the modules that tests share, and of the scripts."""


def start(number: int, *arguments: str) -> "subprocess.Popen[str]":
    """Start a Python whose JAX sees `number` devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
    own = {"XLA_FLAGS": flags}
    own["PYTHONPATH"] = os.pathsep.join(filter(None, [*SHARED, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, number: int = RUN) -> str:
    """Run a Python with `number` devices, which must succeed, and return its output."""
    with start(number, *arguments) as running:
        _, said = running.communicate()
    assert running.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """What `device_results` writes for its arguments."""

    @functools.cache
    def results(what: str, *numbers: int) -> Any:
        path = tmp_path_factory.mktemp("devices") / "results.pickle"
        script = str(Path(__file__).with_name("device_results.py"))
        run(script, str(path), what, *map(str, numbers), number=max(numbers))
        return pickle.loads(path.read_bytes())

    return results


def test_a_command_finds_steady_virtual_devices(tmp_path: Path) -> None:
    """They are made steady before JAX looks for devices, which nothing can change afterwards."""
    code = """
import os, sys
from jax._src import xla_bridge
from tyr_jax.runtime import devices

steady = devices.steady_virtual_devices
def checked():
    print("begun" if xla_bridge.backends_are_initialized() else "in time", file=sys.stderr)
    steady()
devices.steady_virtual_devices = checked

from tyr_jax.cli import prune
prune.main(["--model", sys.argv[1], "--output", sys.argv[1] + "/pruned"])
"""
    with start(2, "-c", code, str(tmp_path)) as running:
        _, said = running.communicate()
    assert said.splitlines()[0] == "in time"


def test_virtual_devices_do_not_block_each_other(tmp_path: Path) -> None:
    """A device that waits in a collective leaves the others threads to compute on, and all devices run
    independent collectives in one order."""
    code = """
import os, sys
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from tyr_jax.runtime import devices

def own(x):
    parts = [x @ x.T for x in jnp.split(x, 4, axis=1)]
    gathered = sum(jnp.sum(jax.lax.all_gather(part, "devices")) for part in parts)
    return gathered + sum(jnp.sum(jax.lax.psum(part, "devices")) for part in parts)

with devices.in_use():
    x = devices.place(jnp.ones((2 * 64, 256)))
    run = jax.jit(jax.shard_map(own, in_specs=P("devices"), out_specs=P(), check_vma=False))
    for _ in range(30):
        value = float(run(x))
print(value, os.environ["XLA_FLAGS"], os.environ["PJRT_NPROC"], file=sys.stderr)
"""
    said = run("-c", code, number=2).splitlines()[-1].split()
    assert float(said[0]) == 4 * 4 * 64 * 64 * 64
    assert devices.IN_ORDER in said
    assert said[-1] == str(2 + (os.cpu_count() or 1))


@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "config"),
    [
        *((RUN, name) for name in ("mixed", "experts")),
        *((COMPILED, name) for name in ("plain", "mixed", "experts")),
    ],
)
def test_every_stage(number: int, config: str, results: Callable[..., Any]) -> None:
    one, other = (jax.tree.flatten_with_path(found)[0] for found in results(config, 1, number))
    for (path, expected), (_, ours) in zip(one, other, strict=True):
        name = jax.tree_util.keystr(path)
        if "own text" in name:
            # Rounding may decide which token is drawn, and with it the rest of one text.
            assert np.all(ours == expected, axis=1).sum() >= len(expected) - 1, name
            assert len(np.unique(expected, axis=0)) == len(expected)
            continue
        # Slopes are differences of gradients, so a small slope has the rounding error of larger numbers.
        scale = max(1.0, np.abs(expected).max()) if "slopes" in name else 1.0
        # Adam divides a small gradient by its own size, and with it the rounding error.
        scale = 10.0 if "reconstructed" in name else scale
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * scale, err_msg=name)


def test_no_more_than_a_matrix_of_a_layer_is_gathered(results: Callable[..., Any]) -> None:
    """In the search this is one level's projection, never all levels or all layers."""
    shape, hidden = make_tiny_config().dense_shape, make_tiny_config().hidden
    largest = max(shape.ffn, make_tiny_config().vocab) * hidden, obs.PANEL_ROWS * shape.ffn
    (found,) = results("collectives", COMPILED)
    bounds = {name: 4 * largest["pruning" in name] for name in found}
    assert {name: what for name, what in found.items() if what[0] > bounds[name]} == {}


@pytest.mark.long
@pytest.mark.parametrize("number", [RUN, pytest.param(COMPILED, marks=pytest.mark.long)])
def test_the_whole_job(number: int, tiny_arguments: list[str], tmp_path: Path) -> None:
    outputs = tmp_path / "one", tmp_path / "several"
    arguments = [*tiny_arguments, "--prompt", "head layer"]
    prune.main([*arguments, "--output", str(outputs[0])])
    run("-m", "tyr_jax.prune", *arguments, "--output", str(outputs[1]), number=number)
    one, several = (json.loads((output / "summary.json").read_text()) for output in outputs)
    assert one["distribution"] == several["distribution"]
    assert one["dense"]["sample"] == several["dense"]["sample"]
    weights, others = (load_file(output / "model.safetensors") for output in outputs)
    assert weights.keys() == others.keys()
    for name, expected in weights.items():
        np.testing.assert_allclose(others[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("number", [RUN, pytest.param(COMPILED, marks=pytest.mark.long)])
def test_ffns_learn_on_several_devices(number: int, tiny_arguments: list[str], tmp_path: Path) -> None:
    """A step then takes other tokens than on one device, so only the effect can be the same."""
    many = [
        "--calibration-tokens",
        "2048",
        "--calibration-openings",
        "0",
        "--rounds",
        "0",
        "--reconstruct",
        "8",
    ]
    outputs = tmp_path / "one", tmp_path / "several"
    prune.main([*tiny_arguments, *many, "--output", str(outputs[0])])
    run("-m", "tyr_jax.prune", *tiny_arguments, *many, "--output", str(outputs[1]), number=number)
    one, several = (json.loads((output / "summary.json").read_text()) for output in outputs)
    for made in (one, several):
        (plain,), (learnt,) = (made[model]["quality"].values() for model in ("uniform", "reconstructed"))
        assert learnt["kl"] < plain["kl"]
    (ours,), (theirs,) = (made["reconstructed"]["quality"].values() for made in (one, several))
    assert ours["kl"] == pytest.approx(theirs["kl"], rel=0.2)


@pytest.mark.long
@pytest.mark.parametrize("number", [RUN, COMPILED])
def test_recovery(number: int, tiny_model: Path, tiny_text: Path, tmp_path: Path) -> None:
    few = """--goal kd+next-token --tokens 1024 --sequence-length 32 --step-tokens 256 --rank 4
        --evaluation-length 32 --evaluation-windows 4 --learning-rate 0.01"""
    arguments = [str(tiny_model), "--teacher", str(tiny_model), "--data", str(tiny_text), *few.split()]
    outputs = tmp_path / "one", tmp_path / "several"
    finetune.main([*arguments, "--output", str(outputs[0])])
    run("-m", "tyr_jax.finetune", *arguments, "--output", str(outputs[1]), number=number)
    one, several = (json.loads((output / "recovery.json").read_text())["losses"] for output in outputs)
    np.testing.assert_allclose(several, one, rtol=1e-4)
    weights, others = (load_file(output / "model.safetensors") for output in outputs)
    for name, expected in weights.items():
        np.testing.assert_allclose(others[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("before", "after", "piece", "rounds"),
    [
        (4, 2, "prune-uniform/block-1", 0),
        pytest.param(1, 2, "round-1", 2, marks=pytest.mark.long),
        pytest.param(8, 4, "prune-uniform/block-1", 0, marks=pytest.mark.long),
        pytest.param(1, 8, "round-1", 2, marks=pytest.mark.long),
    ],
)
def test_a_run_goes_on_on_another_number_of_devices(
    before: int, after: int, piece: str, rounds: int, tiny_arguments: list[str], tmp_path: Path
) -> None:
    """A preempted run may get a slice of another size, in the first fold or after a round."""
    arguments = [*tiny_arguments, "--rounds", str(rounds)]
    command = ["-m", "tyr_jax.prune", *arguments, "--output", str(tmp_path / "moved")]
    finished = tmp_path / ".moved.unfinished" / "finished"
    with start(before, *command) as running:
        while running.poll() is None and not (finished / piece).is_dir():
            time.sleep(0.001)
        running.kill()
        running.communicate()
    assert running.returncode < 0
    said = run(*command, number=after)
    assert f"begun on {before} devices, continuing on {after}" in said
    assert "done before the interruption" in said
    prune.main([*arguments, "--output", str(tmp_path / "one")])
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "moved"))
    for name, expected in weights.items():
        np.testing.assert_allclose(others[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


def test_divided_arrays_are_saved_as_they_lie(tmp_path: Path) -> None:
    """Nothing gathers them. They are read in any division, and their checksum does not depend on it."""
    code = """
import sys
from pathlib import Path
import jax, numpy as np
from tyr_jax.errors import UserError
from tyr_jax.runtime import devices
from tyr_jax.workspace import pytrees
from tyr_jax.workspace.store import Store

store = Store(Path(sys.argv[1]))
plain = [np.arange(16 * 24, dtype=np.float32).reshape(16, 24), np.ones((5, 3), np.float32)]
with devices.in_use():
    rows, columns = devices.place(plain), devices.place(plain, 1)
    assert pytrees.encode(rows)[1]["0"] is rows[0]
    assert len({pytrees.checksum(tree) for tree in (plain, rows, columns)}) == 1
    store.save("piece", rows)
    for like in (rows, columns):
        found = store.load("piece", like=like).tree
        for array, example, expected in zip(found, like, plain, strict=True):
            assert array.sharding == example.sharding
            np.testing.assert_array_equal(array, expected)
with devices.in_use(2):
    few = devices.place(plain)
    assert store.load("piece", like=few).tree[0].sharding == few[0].sharding
for array, expected in zip(store.load("piece").tree, plain, strict=True):
    assert isinstance(array, np.ndarray)
    np.testing.assert_array_equal(array, expected)
for file in Path(sys.argv[1]).rglob("d/*"):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
try:
    store.load("piece", like=columns)
except UserError as error:
    assert "is damaged" in str(error)
else:
    raise AssertionError
"""
    run("-c", code, str(tmp_path))


def test_where_there_is_no_mesh_nothing_is_divided() -> None:
    assert devices.count() == 1
    assert devices.divided(len) is len
    with devices.in_use():
        assert devices.count() == 1


SEARCHES = """
import jax, numpy as np
from tyr_jax.problems import stack_problems, synthetic_problem
from tyr_jax.runtime import devices
from tyr_jax.search.device import search_many, search_on_device
from tyr_jax.search.evolution import Evolution

search = Evolution(generations=3, offspring=8, survivors=(2, 1), stage_tokens=(16, 32))
small = {"depth": 4, "levels": 5, "noise": 0.1, "sequences": 4, "length": 16}
problems = [synthetic_problem(seed, **small) for seed in range(16)]
keys = jax.random.split(jax.random.key(0), 16)
alone = [search_on_device(search, *one).levels for one in zip(keys[:3], problems[:3])]
with devices.in_use():
    arguments = keys, stack_problems(problems)
    found = search_many(search, *arguments)
    text = search_many.lower(search, *arguments).compile().as_text()
assert len(found.levels.sharding.device_set) == 8
np.testing.assert_array_equal(found.levels[:3], alone)
assert not any(name in text for name in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))
"""


MATRICES = """
import jax, numpy as np
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import random_params
import flap
from quantise import Integers, Zeros, change_matrices, compensated
from tyr_jax.runtime import devices

config = ModelConfig("llama", 96, 32, 8, (LayerShape(4, 2, 48),) * 2)
params = random_params(config, jax.random.key(0), scale=0.3)
texts = [np.random.default_rng(0).integers(0, 96, (11, 12))]  # not divided by the devices

def results():
    _, found = flap.measure(params, texts, config)
    yield from found
    for rule in (Integers(bits=4, group=16), Zeros()):
        change = lambda weight, gram: compensated(weight, gram, rule)
        yield devices.fetch(change_matrices(params, texts, config, change)["blocks"])

alone = list(results())
with devices.in_use():
    assert devices.count() == 2
    for one, several in zip(alone[:2], results()):
        np.testing.assert_allclose(several.mean, one.mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(several.variance, one.variance, rtol=1e-3, atol=1e-6)
    for one, several in zip(alone[2:], list(results())[2:]):
        for name in one:
            # A value in the middle between two allowed ones may go either way.
            assert np.isclose(several[name], one[name], atol=1e-3).mean() > 0.97, name
"""


@pytest.mark.long
def test_matrices_are_changed_alike() -> None:
    run("-c", MATRICES)


@pytest.mark.long
def test_searches_side_by_side_are_divided_and_need_no_communication() -> None:
    run("-c", SEARCHES, number=COMPILED)
