"""How recovery trains: AdamW or Muon, warm-up and cosine decay, gradients accumulated over several batches.

A step is one program. It keeps the trained parameters and the optimiser's state in float32; everything else
stays as it is.

Axis letters: `A` batches of a step, `B` rows of a batch, `T` tokens.
"""

import dataclasses
import functools
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import tyro

from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.recovery import adapters, loss
from tyr_jax.recovery.adapters import Method
from tyr_jax.recovery.loss import Loss, TrainingRows

WIDTH_RATE: dict[Method, float] = {"lora": 1.7, "full": 0.17}
"""Default learning rate of each method, times the hidden size of the model."""

MUON_SCALE = 0.2
"""Root mean square of Muon's update at a learning rate of 1, about that of AdamW (Liu et al. 2025)."""


@dataclasses.dataclass(frozen=True)
class Training:
    """The optimiser."""

    method: Method = "lora"
    """`lora` trains a low-rank update of every projection, merged into the weights in the end; `full` trains
    all weights of the blocks and the final norm. Embeddings and head stay as they are."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` (Jordan et al. 2024) updates matrices by orthogonal steps, and vectors as AdamW does."""
    rank: int = 16
    """LoRA rank."""
    alpha: float = 32.0
    """LoRA alpha: low-rank updates are scaled by `alpha / rank`."""
    learning_rate: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Peak learning rate (default: 1.7 divided by the hidden size, a tenth of that for `full`)."""
    warmup: float = 0.05
    """Share of the steps that are linear warm-up to the peak learning rate; then it decays, as a cosine, to a
    tenth of the peak."""
    weight_decay: float = 0.0
    """Weight decay of the optimiser."""
    clip: float = 1.0
    """Gradients are clipped to this norm."""

    @property
    def scale(self) -> float:
        """Factor on the low-rank changes."""
        return self.alpha / self.rank

    def rate(self, hidden: int) -> float:
        """The learning rate. The default falls with the width of the model (Yang et al. 2021), from the value
        found for SmolLM2-135M."""
        return WIDTH_RATE[self.method] / hidden if self.learning_rate is None else self.learning_rate

    def updates(self, steps: int, config: ModelConfig) -> optax.GradientTransformation:
        """The optimiser, for `steps` steps of a model of `config`."""
        warmup = max(1, round(self.warmup * steps))
        rate = self.rate(config.hidden)
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1), 0.1 * rate)
        if self.optimizer == "adamw":
            made = optax.adamw(schedule, b2=0.95, weight_decay=self.weight_decay)
        else:
            matrices = functools.partial(adapters.matrices, config=config, method=self.method)
            made = optax.contrib.muon(
                schedule,
                weight_decay=self.weight_decay,
                adam_b2=0.95,
                adam_weight_decay=self.weight_decay,
                muon_weight_dimension_numbers=matrices,
                consistent_rms=MUON_SCALE,
            )
        return optax.chain(optax.clip_by_global_norm(self.clip), made)


class State(NamedTuple):
    """What training changes: the trained parameters, and the optimiser's state."""

    trained: Any
    optimizer: Any


class Models(NamedTuple):
    """What training does not change: the rest of the pruned model, and the dense model, if it is needed."""

    frozen: Params
    teacher: Params | None


class TrainingPlan(NamedTuple):
    """What a step is compiled for."""

    config: ModelConfig
    teacher: ModelConfig | None
    training: Training
    loss: Loss
    steps: int

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The optimiser for all steps."""
        return self.training.updates(self.steps, self.config)


def begin_training(params: Params, plan: TrainingPlan, seed: int) -> State:
    """The state that training begins in."""
    training = plan.training
    trained = adapters.trainable(params, plan.config, training.method, training.rank, seed)
    return State(trained, plan.optimizer.init(trained))


def gradients(trained: Any, models: Models, rows: TrainingRows, plan: TrainingPlan) -> tuple[jax.Array, Any]:
    """(the loss, its gradients) of `rows`, both summed over the tokens that are learnt."""
    dense = None
    if plan.teacher is not None and models.teacher is not None:
        dense = loss.teacher_batch(models.teacher, rows.tokens, plan.teacher, plan.loss)

    def total(trained: Any) -> jax.Array:
        training = plan.training
        params = adapters.assemble(models.frozen, trained, training.method, training.scale)
        return jnp.sum(loss.sums(params, rows, dense, plan.config, plan.loss))

    return jax.value_and_grad(total)(trained)


@functools.partial(jax.jit, static_argnames="plan", donate_argnames="state")
def step(state: State, models: Models, rows: TrainingRows, plan: TrainingPlan) -> tuple[State, jax.Array]:
    """Take a step on `rows [A, B, T]`: (the new state, the mean loss of a token before the step)."""

    def add(total: tuple[jax.Array, Any], rows: TrainingRows) -> tuple[tuple[jax.Array, Any], None]:
        return jax.tree.map(jnp.add, total, gradients(state.trained, models, rows, plan)), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trained)
    (value, slopes), _ = jax.lax.scan(add, zeros, rows)
    count = jnp.maximum(jnp.sum(rows.learn[..., 1:]), 1)
    slopes = jax.tree.map(lambda slope: slope / count, slopes)
    updates, optimizer = plan.optimizer.update(slopes, state.optimizer, state.trained)
    return State(optax.apply_updates(state.trained, updates), optimizer), value / count
