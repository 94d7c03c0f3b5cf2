"""What determines a recovered model."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.errors import UserError, require
from tyr_jax.recovery.loss import Loss
from tyr_jax.recovery.train import Training
from tyr_jax.runtime import devices
from tyr_jax.settings import ComputeType, WeightType

ROW_TOKENS = 4096
"""Tokens of a step that a device trains on at a time."""

STEP_TOKENS = 2048
"""Tokens of a step by default: a few hundred thousand tokens then make enough steps."""


@dataclasses.dataclass(frozen=True)
class RecoverySettings:
    """Everything that determines a recovered model."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PRUNED")]
    """What to train: a directory, a .gguf file, a hub id, or `builtin`."""
    teacher: Annotated[str | None, tyro.conf.arg(metavar="DENSE")] = None
    """The dense model to learn from (default: the one that was pruned, if that was `builtin`, or with
    --trust-record)."""
    trust_record: bool = False
    """Load the dense model that the record of the pruned one names. Use this only if
    you trust whoever made the record."""
    data: tuple[str, ...] = ("builtin",)
    """Text to train on, each SOURCE[@WEIGHT] as for pruning: `builtin`, `self` (text that the dense model
    writes), a .txt, .jsonl, .json or .parquet file, or a hub dataset. A part of each text is held out, as in
    pruning, except for `self` and conversations. Of conversations, only the answers are learnt."""
    evaluation: tuple[str, ...] = ()
    """Further texts to measure on."""
    output: Path = Path("recovered")
    """Directory for the recovered model; must not exist yet, or be empty."""
    overwrite: bool = False
    """Replace an output directory that is not empty, once the new model is complete. Refused if it holds a
    file that these commands did not write."""
    restart: bool = False
    """Discard the finished steps of an interrupted run and start over. Without it, the same command continues
    that run, and a different command is refused."""
    tokens: int = 300_000
    """Tokens to train on, in whole steps; a shorter text is repeated."""
    sequence_length: int = 512
    """Tokens in a training sequence."""
    step_tokens: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens in the batch of an optimiser step (default: 2048, rounded up so that every device gets the same
    number of sequences)."""
    save_every: int = 20
    """Save finished work every this many steps; an interruption loses at most these."""
    evaluation_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens in an evaluation window (default: as when the model was made, or else 2048)."""
    evaluation_windows: int = 20
    """At most this many windows of each evaluation text."""
    bos: bool = False
    """Start every sequence and window with the tokenizer's BOS."""
    dtype: WeightType = "as-stored"
    """Type of the weights that are written."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations while the models run; what is trained is float32 either way."""
    seed: int = 0
    """Seed of the text that is drawn, of its order, and of the initial low-rank matrices."""
    loss: Loss = dataclasses.field(default_factory=Loss)
    """Objective"""
    training: Training = dataclasses.field(default_factory=Training)
    """Training"""


def validate(settings: RecoverySettings) -> None:
    """Refuse invalid settings, each with its flag.

    Raises:
        UserError: a setting is invalid.
    """
    training, length = settings.training, settings.sequence_length
    for flag, number, least in (
        ("--sequence-length", length, 2),
        ("--tokens", settings.tokens, length),
        ("--step-tokens", settings.step_tokens, length),
        ("--save-every", settings.save_every, 1),
        ("--evaluation-length", settings.evaluation_length, 2),
        ("--evaluation-windows", settings.evaluation_windows, 1),
        ("--rank", training.rank, 1),
    ):
        require(number is None or number >= least, flag, number, f"at least {least}")
    for flag, value in (
        ("--learning-rate", training.learning_rate),
        ("--alpha", training.alpha),
        ("--clip", training.clip),
    ):
        require(value is None or 0 < value < math.inf, flag, value, "above 0 and finite")
    for flag, value in (("--weight-decay", training.weight_decay), ("--hidden", settings.loss.hidden)):
        require(0 <= value < math.inf, flag, value, "0 or more, and finite")
    require(0 <= training.warmup <= 1, "--warmup", training.warmup, "between 0 and 1")
    require(0 <= settings.seed < 2**32, "--seed", settings.seed, "from 0 to 4294967295")
    if settings.loss.hidden and not settings.loss.taught:
        raise UserError(
            "--hidden compares with the dense model's hidden states: train with --goal kd or kd+next-token"
        )


def step_rows(settings: RecoverySettings) -> int:
    """Rows of a step."""
    if settings.step_tokens is not None:
        return settings.step_tokens // settings.sequence_length
    n = devices.count()
    return n * -(-max(1, STEP_TOKENS // settings.sequence_length) // n)


def step_shape(settings: RecoverySettings, together: int) -> tuple[int, int, int]:
    """(steps, batches of each step, rows of each batch), where a step has `together` rows.

    Raises:
        UserError: a step's rows are not a multiple of the number of devices, or there are too few.
    """
    length = settings.sequence_length
    count, n = settings.tokens // length, devices.count()
    if together % n:
        raise UserError(
            f"a step has {together} sequences of {length} tokens, not a multiple of the {n} devices: "
            "choose another --step-tokens, or use a number of devices that divides it"
        )
    if count < together:
        raise UserError(
            f"--tokens gives {count} sequences, fewer than the {together} of one step: raise --tokens or "
            "lower --step-tokens"
        )
    most = n * max(1, ROW_TOKENS // length)
    width = max(rows for rows in range(n, together + 1, n) if together % rows == 0 and rows <= most)
    return count // together, together // width, width
