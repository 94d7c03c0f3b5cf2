"""Quantisation and 2:4 zeros: hand-worked matrices, the update step by step in float64, and a whole model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantise import (
    DAMPING,
    STAGES,
    Integers,
    Rule,
    Zeros,
    change_matrices,
    compensated,
    rounded,
)
from tiny import TINY, make_tiny_config

from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import layer_block, random_params


def inputs(channels: int, seed: int = 0) -> np.ndarray:
    """Correlated inputs `[tokens, channels]`."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(400, channels)) @ rng.normal(size=(channels, channels)) + 0.3


def test_integers_worked_by_hand() -> None:
    # Two bits allow -1, 0 and 1 times the largest modulus of an output: 4 and 1 in the first group.
    weight = jnp.array([[4.0, 0.4], [-2.1, -1.0], [1.9, 0.6], [0.3, 0.0], [-3.0, 0.0]])
    found = rounded(weight, Integers(bits=2, group=3))
    np.testing.assert_array_equal(found, [[4, 0], [-4, -1], [0, 1], [0, 0], [-3, 0]])
    # As one group, the last channel is measured by the first.
    np.testing.assert_array_equal(rounded(weight, Integers(bits=2))[:, 0], [4, -4, 0, 0, -4])


def test_zeros_worked_by_hand() -> None:
    weight = jnp.array([[1.0, -5.0], [2.0, 4.0], [-3.0, 3.0], [0.5, -2.0], [0.1, 0.0], [0.2, 0.0]])
    found = rounded(weight, Zeros())
    np.testing.assert_allclose(found, np.array([[0, -5], [2, 4], [-3, 0], [0, 0], [0.1, 0], [0.2, 0]]))


def test_compensation_worked_by_hand() -> None:
    # With a step of 1, 1.4 becomes 1. In Hs⁻¹ of the first two channels, -1/3 stands beside 2/3, so the
    # second makes up for half of the 0.4: 2.4 + 0.2 is rounded to 3. The third has nothing to do with them.
    hessian = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    gram = hessian - DAMPING / (1 + DAMPING) * np.diag(hessian).mean() * np.eye(3)
    weight = jnp.array([[1.4], [2.4], [3.0]])
    found = compensated(weight, jnp.asarray(gram, jnp.float32), Integers(bits=3))
    np.testing.assert_allclose(found[:, 0], [1, 3, 3], rtol=1e-6)
    np.testing.assert_allclose(rounded(weight, Integers(bits=3))[:, 0], [1, 2, 3], rtol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_at_most_half_a_step(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(70, 5)).astype(np.float32)
    found = np.asarray(rounded(jnp.asarray(weight), Integers(bits=bits, group=32)))
    for first in range(0, 70, 32):
        part, other = weight[first : first + 32], found[first : first + 32]
        step = (np.abs(part).max(axis=0) / (2 ** (bits - 1) - 1)).astype(np.float16).astype(np.float32)
        # The largest value is cut off where the scale is rounded down, by a tenth of a step at most.
        assert np.all(np.abs(part - other) <= step * 0.6)
        np.testing.assert_allclose(other / step, np.round(other / step), atol=1e-3)


@pytest.mark.parametrize("compensate", [False, True])
def test_every_four_keep_two(compensate: bool) -> None:
    x, weight = inputs(22), np.random.default_rng(1).normal(size=(22, 7)).astype(np.float32)
    gram = jnp.asarray(x.T @ x, jnp.float32)
    found = compensated(jnp.asarray(weight), gram, Zeros()) if compensate else rounded(weight, Zeros())
    for first in range(0, 20, 4):
        assert np.all(np.count_nonzero(found[first : first + 4], axis=0) == 2)
    assert np.count_nonzero(found[20:]) == 14


def by_steps(weight: np.ndarray, gram: np.ndarray, rule: Rule) -> np.ndarray:
    """`compensated`, channel by channel, with the explicit inverse of what is left, in float64."""
    damped = gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    weight, group = weight.copy(), rule.group or len(weight)
    for first in range(0, len(weight), group):
        rest = np.linalg.inv(damped[first:, first:])
        # The diagonal of the inverse of what is left when each channel's turn comes.
        spread = []
        for _ in range(min(group, len(rest))):
            spread.append(np.sqrt(rest[0, 0]))
            rest = (rest - np.outer(rest[:, 0], rest[0]) / rest[0, 0])[1:, 1:]
        rows = jnp.asarray(weight[first : first + group], jnp.float32)
        decision = rule.decide(rows, jnp.asarray(spread, jnp.float32))
        for index in range(len(rows)):
            channel = first + index
            inverse = np.linalg.inv(damped[channel:, channel:])
            row = jnp.asarray(weight[channel], jnp.float32)
            fixed = np.asarray(rule.apply(decision, row, jnp.int32(index)), np.float64)
            weight[channel:] -= np.outer(inverse[:, 0], (weight[channel] - fixed) / inverse[0, 0])
            weight[channel] = fixed
    return weight


@pytest.mark.parametrize("rule", [Integers(bits=4), Integers(bits=3, group=8), Zeros()], ids=str)
def test_later_channels_make_up_for_errors(rule: Rule) -> None:
    x, weight = inputs(24), np.random.default_rng(1).normal(size=(24, 6))
    gram = x.T @ x
    found = compensated(jnp.asarray(weight, jnp.float32), jnp.asarray(gram, jnp.float32), rule)
    expected = by_steps(weight, gram, rule)
    # A value in the middle between two allowed ones may go either way.
    same = np.isclose(found, expected, atol=2e-3)
    assert same.mean() > 0.95

    def error(other: np.ndarray) -> float:
        return float(np.sum((x @ (weight - np.asarray(other, np.float64))) ** 2))

    assert error(found) < 0.8 * error(rounded(jnp.asarray(weight, jnp.float32), rule))
    assert error(found) == pytest.approx(error(expected), rel=0.05)


def test_a_channel_without_input_is_rounded() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 3)).astype(np.float32)
    found = compensated(jnp.asarray(weight), jnp.zeros((8, 8)), Integers(bits=4))
    np.testing.assert_allclose(found, rounded(jnp.asarray(weight), Integers(bits=4)), rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Integers(bits=1), "bits is 1, but must be between 2 and 16"),
        (lambda: Integers(group=-1), "group is -1, but must be at least 0"),
        (lambda: Zeros(kept=5), "kept is 5, but must be between 1 and the group's 4"),
    ],
)
def test_rules_out_of_range(make: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        make()  # type: ignore[operator]


@pytest.mark.slow
def test_every_matrix_of_a_model_has_its_own_inputs() -> None:
    """A pruned model, one of whose layers has no attention: what each matrix gets is the XᵀX of what enters
    it once those before it are halved."""
    layers = (TINY, LayerShape(heads=0, kv_heads=0, ffn=24), LayerShape(heads=2, kv_heads=1, ffn=16))
    config = make_tiny_config(layers=3).__class__(**{**vars(make_tiny_config(layers=3)), "layers": layers})
    params = random_params(config, jax.random.key(0), scale=0.3)
    texts = [
        np.random.default_rng(0).integers(0, 96, (2, 12)),
        np.random.default_rng(1).integers(0, 96, (1, 8)),
    ]
    seen = []

    def halve(weight: jax.Array, gram: jax.Array) -> jax.Array:
        seen.append((weight.shape, np.asarray(gram)))
        return weight / 2

    halved = change_matrices(params, texts, config, halve)
    assert len(seen) == 7 + 3 + 7
    assert isinstance(halved["blocks"], tuple)
    for layer in range(3):
        block, other = layer_block(params["blocks"], layer), layer_block(halved["blocks"], layer)
        for name in block:
            half = any(name in names for names in STAGES)
            np.testing.assert_array_equal(other[name], block[name] / 2 if half else block[name])
    x = [decoder.embed(params, jnp.asarray(tokens)) for tokens in texts]
    block = layer_block(halved["blocks"], 0)
    x = [decoder.apply_block(block, each, decoder.rope_tables(config, each.shape[1]), config) for each in x]
    units = [decoder.ffn_units(layer_block(halved["blocks"], 1), each, config).reshape(-1, 24) for each in x]
    shape, gram = seen[9]
    assert shape == (24, config.hidden)
    np.testing.assert_allclose(gram, sum(np.asarray(part).T @ part for part in units), rtol=1e-4, atol=1e-5)


def test_a_model_of_like_layers_stays_stacked() -> None:
    config = make_tiny_config(layers=2)
    params = random_params(config, jax.random.key(0))
    same = change_matrices(params, [], config, lambda weight, _: weight)
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_bits_by_hand() -> None:
    assert Integers(bits=8).bits_of(100, 10) == 10 * (100 * 8 + 16)
    assert Integers(bits=4, group=64).bits_of(100, 10) == 10 * (100 * 4 + 2 * 16)
    assert Zeros().bits_of(100, 10) == 10 * 50 * 18


def test_experts_are_refused() -> None:
    config = make_tiny_config(shape=LayerShape(4, 2, 16, experts=4), routed=2)
    params = random_params(config, jax.random.key(0))
    with pytest.raises(UserError, match="matrices of experts cannot be quantised"):
        change_matrices(params, [np.zeros((1, 8), int)], config, lambda weight, _: weight)
