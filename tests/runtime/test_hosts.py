"""Several processes on this machine give the same results as one, and all end if one of them does."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from commands import main_job
from safetensors.numpy import load_file

from tyr_jax.cli import prune
from tyr_jax.runtime import hosts
from tyr_jax.runtime.hosts import HostSettings

pytestmark = pytest.mark.slow


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def launch(arguments: list[str], **environment: str) -> subprocess.Popen[str]:
    """Start the main job in a separate process."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(main_job(*arguments), text=True, env=os.environ | environment, **streams)


def start(*arguments: list[str]) -> list[subprocess.Popen[str]]:
    """Start the main job in one process per list of arguments."""
    joining = ["--coordinator-address", free_address(), "--num-processes", str(len(arguments))]
    return [launch([*own, *joining, "--process-id", str(number)]) for number, own in enumerate(arguments)]


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Wait for the processes, which must succeed, and return their stderr."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return said


def found(directory: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The distribution and the weights in an output directory."""
    return json.loads((directory / "summary.json").read_text())["distribution"], load_file(
        directory / "model.safetensors"
    )


@pytest.fixture(scope="module")
def small(tiny_arguments: list[str]) -> list[str]:
    """Arguments of a run that has every stage."""
    few = "--rounds 1 --descent.generations 1 --generations 1 --survivors 1 --stage-tokens 32"
    return [*tiny_arguments, *few.split()]


@pytest.fixture(scope="module")
def two(small: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run with two processes."""
    output = tmp_path_factory.mktemp("two") / "pruned"
    said = finish(start(*[[*small, "--output", str(output)]] * 2))
    assert "round 1/1: evolution" in said[0]
    assert "round" not in said[1]
    assert [path.name for path in output.parent.iterdir()] == ["pruned"]
    return output


@pytest.mark.long
def test_two_processes_find_what_one_finds(two: Path, small: list[str], tmp_path: Path) -> None:
    prune.main([*small, "--output", str(tmp_path / "one")])
    distribution, weights = found(tmp_path / "one")
    theirs, others = found(two)
    assert theirs == distribution
    assert others.keys() == weights.keys()
    for name, expected in weights.items():
        np.testing.assert_allclose(others[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)


def end_of_the_other(lost: int, arguments: list[str], saved: Path, until: str) -> str:
    """Output of one of two processes after the other, number `lost`, is killed as soon as `saved` holds a
    file that matches `until`."""
    processes = start(arguments, arguments)
    left, other = processes[1 - lost], processes[lost]
    while not any(saved.glob(until)) and left.poll() is None:
        time.sleep(0.05)
    other.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    said = left.communicate(timeout=60)[1]
    assert time.monotonic() - killed < 60
    assert left.returncode != 0
    assert other.wait() == -signal.SIGKILL, other.communicate()
    return said


@pytest.mark.long
def test_a_lost_host_ends_the_others_and_the_run_resumes(two: Path, small: list[str], tmp_path: Path) -> None:
    output = tmp_path / "pruned"
    arguments = [*small, "--output", str(output)]
    finished = output.with_name(".pruned.unfinished") / "finished"
    for lost, until in ((1, "inputs"), (0, "work-1/search-*")):
        assert f"error: {hosts.LOST}" in end_of_the_other(lost, arguments, finished, until)
        assert not output.exists()
    finish(start(arguments, arguments))
    distribution, weights = found(output)
    expected, others = found(two)
    assert distribution == expected
    assert {name: array.tobytes() for name, array in weights.items()} == {
        name: array.tobytes() for name, array in others.items()
    }


@pytest.mark.parametrize("option", ["--offload", "--prompt=head layer"])
def test_what_is_for_one_host(
    option: str,
    tiny_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(SystemExit):
        prune.main([*tiny_arguments, option, "--output", str(tmp_path / "pruned")])
    flag = option.partition("=")[0]
    assert capsys.readouterr().err.startswith(f"error: {flag} works on one host only: leave it out")
    assert list(tmp_path.iterdir()) == []


def slurm(number: int) -> dict[str, str]:
    """The environment that Slurm gives the tasks of a job. JAX derives a port from the job's number."""
    job = {"SLURM_JOB_ID": "17", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
    return job | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)}


def open_mpi(number: int) -> dict[str, str]:
    """The environment that Open MPI gives its processes."""
    job = {"OMPI_MCA_orte_hnp_uri": f"{18 << 12}.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2"}
    return job | {"OMPI_COMM_WORLD_RANK": str(number), "OMPI_COMM_WORLD_LOCAL_RANK": str(number)}


@pytest.mark.long
@pytest.mark.parametrize("cluster", [slurm, open_mpi])
def test_clusters_that_describe_their_processes(
    cluster: Callable[[int], dict[str, str]], tiny_arguments: list[str], tmp_path: Path
) -> None:
    """Both end because they were asked for different things, which they can only know if they connect."""
    arguments = [*tiny_arguments, "--distributed", "--output", str(tmp_path / "pruned"), "--seed"]
    processes = [launch([*arguments, str(number)], **cluster(number)) for number in range(2)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert any("process 1 has a different command line from process 0" in text for text in said), said
    assert all(process.returncode != 0 for process in processes)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_hosts_do_not_share(tiny_arguments: list[str], tmp_path: Path) -> None:
    processes = start(*([*tiny_arguments, "--output", str(tmp_path / name / "pruned")] for name in "ab"))
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert all(process.returncode != 0 for process in processes)
    assert "choose an --output on a file system that all hosts share" in said[1]
    assert f"error: {hosts.LOST}" in said[0]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--coordinator-address", "localhost:1", "--num-processes", "2"],
        ["--num-processes", "2", "--process-id", "0"],
        ["--distributed"],
    ],
)
def test_processes_that_cannot_be_joined(arguments: list[str], tmp_path: Path) -> None:
    process = launch(["--output", str(tmp_path / "pruned"), *arguments])
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("error: cannot join the other processes: ")
    assert said.count("\n") == 1


def test_alone_nothing_is_joined() -> None:
    with hosts.joined(HostSettings()):
        assert hosts.is_first()
        hosts.check_agreed("text", 1)
        hosts.wait("here")
