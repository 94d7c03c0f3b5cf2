"""What a candidate is scored by (Eq. 6): how far it is from the dense model on a batch of tokens.

An objective of your own is a frozen dataclass that says which layers it observes. It maps the outputs of the
dense model (the teacher) and of a candidate (the student) on the same tokens to a number::

    @dataclasses.dataclass(frozen=True)
    class ReverseKL(Objective):
        weight: float = 1.0

        def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
            ...

`--objective my_module:ReverseKL --weight 2` then scores the search by it.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `L` layers, `O` observed layers, `V` vocabulary.
"""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp

from tyr_jax.components import Component, broken, guarded
from tyr_jax.errors import require
from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.prediction import (
    Prediction,
    kl_divergence,
    log_normaliser,
    negative_log_likelihood,
)
from tyr_jax.model.spec import ModelConfig, Params


class TeacherBatch(NamedTuple):
    """A minibatch with the dense model's predictions.

    `tokens [B, T]`, the predictions `dense`, and the outputs of observed layers, `hidden [B, O, T, D]` (O = 0
    unless the objective observes any).
    """

    tokens: jax.Array
    dense: Prediction
    hidden: jax.Array


class Student(NamedTuple):
    """A candidate's outputs on a minibatch.

    The output `head`, which is also the dense model's: rows `[V, D]`, or `Capped` if logits are soft-capped
    (`decoder.rows_of` and `decoder.cap_of` read both); normed last hidden states
    `final [B, T, D]`; `normaliser [B, T]`, log Σ exp of their logits; and the outputs of observed layers,
    `hidden [B, O, T, D]`.
    """

    head: decoder.Head
    final: jax.Array
    normaliser: jax.Array
    hidden: jax.Array


class Objective(Component):
    """Base of all objectives; lower is better."""

    role: ClassVar[str] = "objective"

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        """The layers, of `depth`, whose outputs are in `hidden`; none by default."""
        return ()

    def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
        """The objective, a scalar; pure, traceable by JAX, and differentiable if descent is used."""
        raise NotImplementedError


def first_median_last(depth: int) -> tuple[int, int, int]:
    """The first, the median and the last of `depth` layers, which the paper compares."""
    return 0, depth // 2, depth - 1


def hidden_distance(teacher: jax.Array, student: jax.Array, axes: tuple[int, ...] = (0, 2, 3)) -> jax.Array:
    """‖h_dense − h_sparse‖² / ‖h_dense‖² over `axes`, summed over the observed layers; arrays `[B, O, T, D]`.

    A scalar by default; `[B]` with the axes `(2, 3)`; in float32.
    """
    # In bfloat16, differences, squares and sums would be rounded to three digits.
    teacher, student = teacher.astype(jnp.float32), student.astype(jnp.float32)
    change, size = (jnp.sum(array**2, axes) for array in (teacher - student, teacher))
    return jnp.sum(change / size, axis=-1)


def mean_kl(teacher: TeacherBatch, student: Student) -> jax.Array:
    """KL(dense ‖ sparse) in nats, averaged over all tokens."""
    return jnp.mean(kl_divergence(student.head, teacher.dense, student.final, student.normaliser))


def check_weights(**weights: float) -> None:
    """Refuse weights that are negative, not finite, or all zero.

    Raises:
        UserError: names the flag of the weight.
    """
    for name, weight in weights.items():
        require(0 <= weight < math.inf, f"--{name}", weight, "0 or more, and finite")
    name, weight = list(weights.items())[-1]
    require(sum(weights.values()) > 0, f"--{name}", weight, "above 0 where nothing else counts")


@dataclasses.dataclass(frozen=True)
class KL(Objective):
    """KL divergence from the dense model's predictions: the paper's default (Eq. 6 with α = 0)."""

    name: ClassVar[str] = "kl"

    beta: float = 1.0
    """Weight of the KL divergence."""

    def check(self) -> None:
        """Refuse an invalid weight."""
        check_weights(beta=self.beta)

    def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
        """β KL."""
        return self.beta * mean_kl(teacher, student)


@dataclasses.dataclass(frozen=True)
class HiddenKL(Objective):
    """KL divergence, and hidden states of the first, the median and the last layer (Eq. 6).

    Hidden states count as the squared distance relative to the dense model's squared norm, so that `alpha`
    means the same at any depth.
    """

    name: ClassVar[str] = "hidden+kl"

    alpha: float = 1.0
    """Weight of the hidden states."""
    beta: float = 1.0
    """Weight of the KL divergence."""

    def check(self) -> None:
        """Refuse invalid weights."""
        check_weights(alpha=self.alpha, beta=self.beta)

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        """The first, the median and the last."""
        return first_median_last(depth)

    def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
        """α Σ_l ‖h_l^dense − h_l^sparse‖² / ‖h_l^dense‖² + β KL."""
        return self.beta * mean_kl(teacher, student) + self.alpha * hidden_distance(
            teacher.hidden, student.hidden
        )


@dataclasses.dataclass(frozen=True)
class Perplexity(Objective):
    """Log-perplexity of the search text itself, in nats a token."""

    name: ClassVar[str] = "perplexity"

    def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
        """Mean next-token negative log-likelihood."""
        return jnp.mean(
            negative_log_likelihood(student.head, student.final, student.normaliser, teacher.tokens)
        )


OBJECTIVES: dict[str, type[Objective]] = {each.name: each for each in (KL, HiddenKL, Perplexity)}
"""By name, as for `--objective`."""


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a model's outputs on a batch become a number: its configuration, the objective, and the layers
    whose outputs are observed, counted from the first layer at hand."""

    config: ModelConfig
    objective: Objective
    observed: tuple[int, ...]

    @classmethod
    def of_model(cls, config: ModelConfig, objective: Objective) -> Self:
        """The scoring of a model with all its layers at hand."""
        return cls(config, objective, objective.observed_layers(config.depth))

    def score(self, params: Params, state: ForwardState, batch: TeacherBatch) -> jax.Array:
        """The objective of a model, on one device, from its forward state after the last layer. `params` has
        the weights outside its blocks."""
        head = decoder.head(params)
        final = decoder.rms_norm(state.residual, params["final_norm"], self.config.norm_eps)
        return self.objective(batch, Student(head, final, log_normaliser(head, final), state.outputs))


def check_objective(objective: Objective, config: ModelConfig, dtype: jnp.dtype) -> None:
    """Try an objective on abstract arrays of a model with activations of `dtype`.

    Raises:
        UserError: it breaks its contract; names it and says how.
    """
    with guarded(objective, "observed_layers"):
        observed = objective.observed_layers(config.depth)
    layers = isinstance(observed, tuple) and all(
        type(layer) is int and layer in range(config.depth) for layer in observed
    )
    if not layers:
        raise broken(
            objective, f"observes {observed!r}: observed_layers must return layers 0 to {config.depth - 1}"
        )
    teacher, student = _abstract_answers(len(observed), config, dtype)
    with guarded(objective, "__call__"):
        value: Any = jax.eval_shape(objective.__call__, teacher, student)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise broken(objective, f"returns {value!r}: it must return a floating-point scalar")


def _abstract_answers(observed: int, config: ModelConfig, dtype: jnp.dtype) -> tuple[Any, Any]:
    """Abstract arguments for an objective: (teacher, student)."""
    batch, length, hidden = 1, 4, config.hidden

    def abstract(*shape: int, of: Any = dtype) -> Any:
        return jax.ShapeDtypeStruct(shape, of)

    final, normaliser = abstract(batch, length, hidden), abstract(batch, length, of=jnp.float32)
    outputs, expected = (
        abstract(batch, observed, length, hidden),
        abstract(batch, length, hidden, of=jnp.float32),
    )
    dense = Prediction(final, expected, normaliser)
    teacher = TeacherBatch(abstract(batch, length, of=jnp.int32), dense, outputs)
    return teacher, Student(abstract(config.vocab, hidden), final, normaliser, outputs)
