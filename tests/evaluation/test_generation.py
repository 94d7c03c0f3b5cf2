"""Generation with a cache against whole forwards, and what sampling may and may not choose."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.evaluation import generation
from tyr_jax.evaluation.generation import Sampling, sample, unstack
from tyr_jax.model.decoder import forward
from tyr_jax.model.rope import Positions
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import random_params

WHOLE = LayerShape(4, 2, 48)
PROMPTS = [[5, 17, 3], [9], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]]
CASES: list[dict[str, Any]] = [
    {},
    {"tied": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    {"positions": (Positions(window=6),)},
    {"positions": (Positions(window=6), Positions(None), Positions(500.0))},
    {"qk_norm": True, "head_dim": 12},
    {"layers": (LayerShape(0, 0, 40), WHOLE, LayerShape(3, 1, 0))},
    {"layers": (LayerShape(3, 3, 8), LayerShape(0, 0, 0), WHOLE)},
]


def make(tiny_config: Callable[..., ModelConfig], **changes: Any) -> tuple[ModelConfig, Params]:
    config = dataclasses.replace(tiny_config(), **changes)
    return config, random_params(config, jax.random.key(0), scale=0.4)


def generate(params: Params, config: ModelConfig, *arguments: Any, **options: Any) -> np.ndarray:
    """The tokens `[count, B]` that `generation.generate` yields one after the other."""
    return np.stack(list(generation.generate(unstack(params, config), config, *arguments, **options)))


def assert_greedy(params: Params, config: ModelConfig, prompt: list[int], generated: list[int]) -> None:
    """Check that each generated token is the likeliest one, by a forward without a cache."""
    tokens = np.zeros((1, 32), np.int32)
    tokens[0, : len(prompt) + len(generated)] = prompt + generated
    likeliest = np.argmax(forward(params, jnp.asarray(tokens), config)[0], axis=-1)
    assert generated == likeliest[len(prompt) - 1 :][: len(generated)].tolist()


def test_weights_lie_side_by_side(tiny_config: Callable[..., ModelConfig]) -> None:
    _, params = make(tiny_config, tied=True)
    params |= {"embed": params["embed"].astype(jnp.bfloat16)}
    moved = generation.side_by_side(params)
    chex.assert_trees_all_equal(moved, params)
    chex.assert_trees_all_equal_dtypes(moved, params)
    starts = sorted(array.unsafe_buffer_pointer() for array in jax.tree.leaves(moved))
    total = sum(array.nbytes for array in jax.tree.leaves(moved))
    assert starts[-1] - starts[0] < total + len(starts) * generation.ALIGNMENT


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES, ids=str)
def test_a_cache_changes_nothing(changes: dict[str, Any], tiny_config: Callable[..., ModelConfig]) -> None:
    config, params = make(tiny_config, **changes)
    tokens = generate(params, config, PROMPTS, 10)
    assert tokens.shape == (10, 3)
    for column, prompt in zip(tokens.T, PROMPTS, strict=True):
        assert_greedy(params, config, prompt, column.tolist())


def test_no_program_compiles_again(tiny_config: Callable[..., ModelConfig]) -> None:
    config, params = make(tiny_config, layers=(WHOLE, LayerShape(2, 1, 16)))
    generate(params, config, [[1, 2], [3]], 5)
    programs = generation.read_prompts, generation.decode
    sizes = [program._cache_size() for program in programs]
    generate(params, config, [[4], [5] * 60], 9)
    assert [program._cache_size() for program in programs] == sizes


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_writes_into_the_cache_it_is_given(
    batch: int, tiny_config: Callable[..., ModelConfig]
) -> None:
    config, params = make(tiny_config, layers=(WHOLE, LayerShape(2, 2, 16)))
    tokens, lengths = jnp.ones((batch, 4), jnp.int32), jnp.full(batch, 4)
    _, cache = generation.prefill(params, tokens, lengths, config, 1024)
    step = generation.decode.lower(params, tokens[:, 0], lengths, cache, config).compile()
    memory = step.memory_analysis()
    held = sum(array.nbytes for array in jax.tree.leaves(cache))
    assert memory.alias_size_in_bytes >= held
    assert memory.temp_size_in_bytes < held / 2


@pytest.mark.slow
def test_a_prompt_beyond_the_multiple(
    tiny_config: Callable[..., ModelConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "PROMPT_MULTIPLE", 4)
    config, params = make(tiny_config)
    tokens = generate(params, config, [PROMPTS[2]], 9)[:, 0]
    assert_greedy(params, config, PROMPTS[2], tokens.tolist())


@pytest.mark.slow
def test_a_sequence_that_has_ended_waits_for_the_others(tiny_config: Callable[..., ModelConfig]) -> None:
    config, params = make(tiny_config)
    free = generate(params, config, PROMPTS, 10)
    stop = int(free[2, 0])
    first = {row: free[:, row].tolist().index(stop) for row in range(3) if stop in free[:, row]}
    stopped = generate(params, config, PROMPTS, 10, stop=frozenset({stop}))
    for row, place in first.items():
        np.testing.assert_array_equal(stopped[: place + 1, row], free[: place + 1, row])
        assert set(stopped[place:, row]) == {stop}
    alone = generate(params, config, PROMPTS[:1], 10, stop=frozenset({stop}))
    assert len(alone) == first[0] + 1


LOGITS = jnp.log(jnp.array([[0.5, 0.05, 0.3, 0.15]]))


def shares(sampling: Sampling, draws: int = 4000) -> np.ndarray:
    logits = jnp.repeat(LOGITS, draws, axis=0)
    return np.bincount(np.asarray(sample(logits, jax.random.key(0), 0, sampling)), minlength=4) / draws


def test_sampling_follows_the_probabilities() -> None:
    np.testing.assert_allclose(shares(Sampling(1.0)), [0.5, 0.05, 0.3, 0.15], atol=0.03)
    squared = np.array([0.25, 0.0025, 0.09, 0.0225])
    np.testing.assert_allclose(shares(Sampling(0.5)), squared / squared.sum(), atol=0.03)
    assert shares(Sampling()).tolist() == [1, 0, 0, 0]


def test_sampling_among_the_likeliest() -> None:
    np.testing.assert_allclose(shares(Sampling(1.0, top_k=2)), [5 / 8, 0, 3 / 8, 0], atol=0.03)
    # 0.5 + 0.3 reaches 0.7; half is reached by the first alone.
    np.testing.assert_allclose(shares(Sampling(1.0, top_p=0.7)), [5 / 8, 0, 3 / 8, 0], atol=0.03)
    assert shares(Sampling(1.0, top_p=0.45)).tolist() == [1, 0, 0, 0]
    assert shares(Sampling(1.0, top_k=1)).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(shares(Sampling(1.0, top_k=9)), [0.5, 0.05, 0.3, 0.15], atol=0.03)


@pytest.mark.slow
def test_a_seed_determines_the_choice(tiny_config: Callable[..., ModelConfig]) -> None:
    config, params = make(tiny_config)
    runs = [generate(params, config, PROMPTS, 10, Sampling(1.0), seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


def test_every_step_has_a_draw_of_its_own() -> None:
    logits, key = jnp.repeat(LOGITS, 100, axis=0), jax.random.key(0)
    draws = [np.asarray(sample(logits, key, step, Sampling(1.0))) for step in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
