"""Exact problems: their objective is what the scorer and transformers say of the shipped model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.problems import load_problem, problem_names
from tyr_jax.problems.exact import MODEL, dense
from tyr_jax.scoring import scorer, slopes
from tyr_jax.scoring.objective import KL
from tyr_jax.search.contract import Query
from tyr_jax.search.device import search_many, search_on_device
from tyr_jax.search.evolution import Evolution
from tyr_jax.space import values_at

EVERY = problem_names() + problem_names(tuning=True)


def test_an_unknown_problem_is_refused() -> None:
    with pytest.raises(UserError, match="there is no problem smollm2: name one of exact-25-units, "):
        load_problem("smollm2")


@pytest.mark.slow
def test_the_model_is_that_of_transformers_and_has_learnt_its_language() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    model, (_, search, held_out) = dense()
    theirs = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(search[:2].astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(
        decoder.forward(model.params, jnp.asarray(search[:2]), model.config), expected, atol=2e-4
    )
    logits = decoder.forward(model.params, jnp.asarray(held_out), model.config)[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), held_out[:, 1:, None], axis=-1)
    # A guess among all tokens costs log 512 = 6.2 nats.
    assert float(-chosen.mean()) < 3.0


@pytest.mark.slow
def test_answers_are_those_of_the_scorer() -> None:
    problem = load_problem("exact-50-parameters")
    config, sequences = problem.scoring.config, np.array([3, 0])
    candidates = np.stack([np.asarray(problem.start), np.asarray(problem.best)])
    found = problem.answer(Query(candidates, sequences))
    given = candidates, problem.text, sequences, config, KL()
    np.testing.assert_allclose(found, scorer.score_population(problem.net, *given), rtol=1e-3)
    steep = np.asarray(problem.answer(Query(candidates[:1], sequences, "slopes")))
    expected = slopes.pool_slopes(problem.net, candidates[0], *given[1:])
    np.testing.assert_allclose(steep[0].mean(axis=0), expected.mean(axis=0), rtol=1e-2, atol=1e-4)


@pytest.mark.slow
def test_nothing_is_lost_where_nothing_is_removed() -> None:
    problem = load_problem("exact-25-units")
    most = np.where(np.asarray(problem.space.exists), np.asarray(problem.space.kept), -1).argmax(axis=-1)
    assert (values_at(np.asarray(problem.space.kept), most) == np.array([6, 256])[:, None]).all()
    assert float(problem.held_out(most)) == pytest.approx(0, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_best_known_meets_the_budget_and_beats_the_start(name: str) -> None:
    problem = load_problem(name)
    for levels in (np.asarray(problem.start), np.asarray(problem.best)):
        assert jax.tree.map(np.asarray, problem.space.budget).allows(levels)
        assert values_at(np.asarray(problem.space.exists), levels).all()
    start, best = (float(problem.held_out(levels)) for levels in (problem.start, problem.best))
    assert 0 < best < 0.95 * start


@pytest.mark.slow
def test_searches_share_a_problem_in_one_program() -> None:
    problem, keys = load_problem("exact-50-units"), jax.random.split(jax.random.key(0), 3)
    search = Evolution(2, 4, (1,), (64,))
    many = search_many(search, keys, problem, shared=True)
    alone = search_on_device(search, keys[1], problem)
    np.testing.assert_array_equal(many.levels[1], alone.levels)
    np.testing.assert_allclose(many.fitness[1], alone.fitness, rtol=1e-4)
