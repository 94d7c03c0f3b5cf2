"""Gradients against finite differences, several batches per step against one, and progress in training."""

import functools
import itertools
import math
from operator import itemgetter
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from recovery_samples import DIFFERENT, make_pair, make_rows

from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import block_specs
from tyr_jax.recovery import adapters, train
from tyr_jax.recovery.adapters import Method
from tyr_jax.recovery.loss import Goal, Loss
from tyr_jax.recovery.train import MUON_SCALE, Models, Training, TrainingPlan

pytestmark = pytest.mark.slow

CASES = list(itertools.product(["lora", "full"], ["kd", "next-token"]))


def set_up(method: Method, goal: Goal, **changes: Any) -> tuple[train.State, Models, TrainingPlan]:
    pair = make_pair()
    training = Training(method=method, rank=4, **({"learning_rate": 1e-2} | changes))
    plan = TrainingPlan(
        pair.small_config, pair.dense_config, training, Loss(goal, hidden=0.1 * (goal == "kd")), 40
    )
    models = Models(adapters.frozen(pair.small, method), pair.dense)
    return train.begin_training(pair.small, plan, 0), models, plan


@pytest.mark.parametrize(("method", "goal"), CASES)
def test_gradients_are_finite_differences(method: Method, goal: Goal) -> None:
    state, models, plan = set_up(method, goal)
    rows = jax.tree.map(lambda array: array[0], make_rows())
    rng = np.random.default_rng(0)

    def random() -> object:
        return jax.tree.map(lambda array: rng.standard_normal(array.shape).astype("f4"), state.trained)

    # Move away from the start of training, where half of the gradients vanish.
    trained = jax.tree.map(lambda array, noise: array + 0.1 * noise, state.trained, random())
    value = jax.jit(lambda trained: train.gradients(trained, models, rows, plan))
    _, slopes = value(trained)
    for _ in range(3):
        along = random()
        size = 3e-3 / float(optax.tree.norm(along))
        more, less = (float(value(optax.tree.add_scale(trained, step, along))[0]) for step in (size, -size))
        expected = (more - less) / (2 * size)
        np.testing.assert_allclose(float(optax.tree.vdot(slopes, along)), expected, rtol=3e-2, atol=0.1)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_batches_of_a_step_add_up(method: Method) -> None:
    rows = make_rows(4, 2)
    together = jax.tree.map(lambda array: array.reshape(1, 8, -1), rows)
    found = []
    for each in (rows, together):
        state, models, plan = set_up(method, "kd+next-token")
        found.append(train.step(state, models, each, plan))
    chex.assert_trees_all_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.long)])
@pytest.mark.parametrize(("method", "goal"), CASES)
def test_training_learns_and_compiles_once(method: Method, goal: Goal, optimizer: str) -> None:
    state, models, plan = set_up(method, goal, optimizer=optimizer, learning_rate=0.03)
    before = train.step._cache_size()
    losses = []
    for _ in range(plan.steps):
        state, loss = train.step(state, models, make_rows(), plan)
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert train.step._cache_size() == before + 1


@pytest.mark.parametrize("layers", [DIFFERENT, (LayerShape(4, 2, 16),) * 3])
@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.long)])
def test_muon_makes_steps_of_matrices_orthogonal(method: Method, layers: tuple[LayerShape, ...]) -> None:
    """Each layer's step is orthogonal by itself, with its projections as [inputs, outputs]."""
    pair = make_pair(layers)
    training = Training(method=method, rank=4, optimizer="muon", learning_rate=1.0, warmup=0.0)
    optimizer = training.updates(10, pair.small_config)
    trained = adapters.trainable(pair.small, pair.small_config, method, 4, 0)
    rng = np.random.default_rng(0)
    slopes = jax.tree.map(lambda array: jnp.asarray(rng.standard_normal(array.shape), jnp.float32), trained)
    _, state = optimizer.update(slopes, optimizer.init(trained), trained)
    step, _ = optimizer.update(slopes, state, trained)
    blocks = step["blocks"] if method == "full" else step
    for layer in range(len(layers)):
        of_layer = blocks[layer] if isinstance(blocks, tuple) else jax.tree.map(itemgetter(layer), blocks)
        matrices = [spec for spec in block_specs(pair.small_config, layer) if spec.inputs]
        assert matrices
        for spec in matrices:
            inputs = math.prod(spec.shape[: len(spec.inputs)]) if method == "full" else 4
            change = of_layer[spec.name] if method == "full" else of_layer[spec.name]["up"]
            matrix = np.reshape(change, (inputs, -1))
            sizes = np.linalg.svd(matrix, compute_uv=False) / (MUON_SCALE * max(matrix.shape) ** 0.5)
            # A few Newton-Schulz steps bring all singular values close to 1, except the smallest.
            assert 0.5 < np.quantile(sizes, 0.1) <= sizes.max() < 1.4, spec.name


def test_the_rate_rises_and_falls() -> None:
    """The rate is read from the change that each step makes, with a constant gradient that is clipped."""
    training = Training(learning_rate=0.1, warmup=0.25, clip=1.0)
    optimizer = training.updates(40, make_pair().small_config)
    weights = {"a": jnp.zeros(3)}
    state = optimizer.init(weights)
    sizes = []
    update = jax.jit(functools.partial(optimizer.update))
    for _ in range(40):
        change, state = update({"a": jnp.full(3, 100.0)}, state, weights)
        sizes.append(float(-change["a"][0]))
    assert sizes[0] == 0
    assert max(range(40), key=sizes.__getitem__) == 10
    assert sizes[10] == pytest.approx(0.1, rel=1e-2)
    assert 0.01 <= sizes[-1] < 0.012


def test_wide_models_learn_more_slowly() -> None:
    # SmolLM2-135M's width.
    assert Training().rate(576) == pytest.approx(3e-3, rel=0.02)
    assert Training(method="full").rate(5760) == pytest.approx(3e-5, rel=0.02)
    assert Training(learning_rate=0.5).rate(576) == 0.5
