"""Several hosts: the same command in a process on each, joined by `jax.distributed`.

All of them run the same program, each on its own devices. Only the first writes and prints. The others read
what it has written, so the output must be on a file system that all of them share. A process that loses
another cannot continue: it ends, and the same command, started again on all hosts, continues where it
stopped.
"""

import contextlib
import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

from tyr_jax import process
from tyr_jax.errors import UserError, first_line

HEARTBEAT = 30
"""Seconds without a sign of life after which a host counts as lost."""

LOST = (
    "another host has ended or cannot be reached (it may have said why); start the same command on all hosts "
    "again: it continues where it stopped"
)

SIGNS = ("gloo", "nccl", "rccl", "unavailable", "coordination", "heartbeat", "deadline_exceeded", "barrier")
"""What JAX's errors say when a host is lost."""

WATCH = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
if not sys.stdin.read():
    print("error: " + sys.argv[1], file=sys.stderr)
"""
"""A program that prints its argument if its parent ends without sending anything."""


@dataclasses.dataclass(frozen=True)
class HostSettings:
    """One process of several, if the job runs on several hosts."""

    distributed: bool = False
    """Join the processes that the cluster has started with this command, as it describes them: Slurm, Open
    MPI, Kubernetes, or a TPU slice. --output must be on a file system that all of them share."""
    coordinator_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """HOST:PORT of the first process, if no cluster manager describes the processes; needs
    --num-processes and --process-id."""
    num_processes: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """How many processes there are."""
    process_id: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """The number of this process, counted from 0."""


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def joined(settings: HostSettings) -> Iterator[None]:
    """A context in which this process is one of several, if `settings` say so.

    If the body fails, the process ends at once, because a normal exit would wait for the others.

    Raises:
        UserError: the processes cannot be joined.
    """
    explicit = settings.coordinator_address, settings.num_processes, settings.process_id
    if not settings.distributed and explicit == (None, None, None):
        yield
        return
    try:
        jax.distributed.initialize(*explicit, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot join the other processes: {first_line(error)}; give every process the "
            "same --coordinator-address and --num-processes, and its own --process-id"
        ) from error
    # After a host is lost, JAX may end this process outside Python, so a child process must say why.
    with subprocess.Popen([sys.executable, "-c", WATCH, LOST], stdin=subprocess.PIPE, text=True) as watch:
        try:
            yield
        except BaseException as error:
            status = process.report(UserError(LOST) if is_lost(error) else error)
            watch.communicate("failed")
            os._exit(status)
        watch.communicate("done")


def is_lost(error: BaseException) -> bool:
    """Whether an error was caused by a host that has ended."""
    known = isinstance(error, RuntimeError | ValueError) and jax.process_count() > 1
    return known and any(sign in str(error).lower() for sign in SIGNS)


def wait(name: str) -> None:
    """Wait until all processes reach this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def check_agreed(what: str, number: int) -> None:
    """Refuse to continue if processes differ in `number`, a 32-bit number that stands for `what`.

    Raises:
        UserError: they differ.
    """
    if jax.process_count() == 1:
        return
    numbers = multihost_utils.process_allgather(np.uint32(number))
    different = np.flatnonzero(numbers != numbers[0])
    if len(different):
        raise UserError(
            f"process {different[0]} has a different {what} from process 0; give all hosts the same, and "
            "start the command on all of them again"
        )
