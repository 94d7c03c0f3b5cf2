"""Text that a model writes: drawn from its own predictions, a function of the seed alone."""

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_tiny_config

from tyr_jax.evaluation import writing
from tyr_jax.evaluation.writing import OwnText
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import random_params


def written(*arguments: Any, **more: Any) -> np.ndarray:
    """The texts of all groups."""
    return np.concatenate(list(writing.write_texts(*arguments, **more)))


@pytest.mark.slow
def test_tokens_are_drawn_from_what_the_model_predicts() -> None:
    config = make_tiny_config(layers=2, shape=LayerShape(2, 1, 16), vocab=5, hidden=8, head_dim=4)
    params = random_params(config, jax.random.key(0), scale=0.3)
    told: list[int] = []
    texts = written(params, config, OwnText(3, 6000, 3, 0), on_tokens=told.append)
    assert texts.shape == (6000, 3)
    assert sum(told) == 18000
    # Compare what follows each beginning of up to two tokens with the model's own probabilities.
    for seen in ((), (1,), (4, 2), (0, 0)):
        begun = texts[(texts[:, : len(seen)] == seen).all(axis=1)] if seen else texts
        counts = Counter(begun[:, len(seen)].tolist())
        logits = forward(params, jnp.asarray([[3, *seen]]), config)[0, -1]
        chances = np.asarray(jax.nn.softmax(logits), float)
        found = np.array([counts[token] for token in range(5)]) / len(begun)
        assert np.abs(found - chances).max() < 4 * np.sqrt(0.25 / len(begun))


@pytest.mark.slow
def test_a_cold_model_always_writes_the_likeliest() -> None:
    config = make_tiny_config(layers=2)
    params = random_params(config, jax.random.key(0), scale=0.2)
    texts = written(params, config, OwnText(1, 2, 70, 0, temperature=1e-6))
    assert (texts[0] == texts[1]).all()
    told = np.asarray(forward(params, jnp.asarray([[1, *texts[0]]]), config))[0]
    np.testing.assert_array_equal(texts[0], told[:-1].argmax(axis=-1))


def test_what_is_written_hangs_on_the_seed_alone() -> None:
    config = make_tiny_config(layers=2)
    params = random_params(config, jax.random.key(0), scale=0.2)
    one, again, other = (written(params, config, OwnText(1, 3, 9, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


def test_a_text_does_not_depend_on_how_many_are_written_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SEQUENCES", 2)
    config = make_tiny_config(layers=2)
    params = random_params(config, jax.random.key(0), scale=0.2)
    groups = list(writing.write_texts(params, config, OwnText(1, 5, 9, 0)))
    assert [len(group) for group in groups] == [2, 2, 1]
    for number in range(3):
        rest = writing.write_texts(params, config, OwnText(1, 5, 9, 0), first=2 * number)
        for group, expected in zip(rest, groups[number:], strict=True):
            np.testing.assert_array_equal(group, expected)
