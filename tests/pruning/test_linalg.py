"""Both ways to compute the inverse and the solutions on prefixes, against float64."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.pruning import linalg

Inverse = Callable[[jax.Array], jax.Array]


def problem(size: int, outputs: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """An ill-conditioned Hessian, of condition about 1e5, and right sides of known size."""
    rng = np.random.default_rng(size)
    inputs = rng.standard_normal((4 * size, size)) * np.exp(1.5 * rng.standard_normal(size))
    hessian = inputs.T @ (inputs + 0.3 * inputs[:, ::-1])
    hessian = hessian + hessian.T
    hessian += (0.02 * np.diag(hessian).mean() - min(0, np.linalg.eigvalsh(hessian)[0])) * np.eye(size)
    return hessian, hessian @ rng.standard_normal((size, outputs))


@pytest.mark.parametrize("way", [linalg.inverse, linalg.inverse_by_sweeps])
@pytest.mark.parametrize("size", [1, 7, 64, 150])
def test_inverse(way: Inverse, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "BLOCK", 32)
    hessian, _ = problem(size)
    ours = np.asarray(jax.jit(way)(jnp.asarray(hessian, jnp.float32)))
    exact = np.linalg.inv(hessian)
    assert np.linalg.norm(ours - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("way", [linalg.factor, linalg.factor_by_blocks])
@pytest.mark.parametrize("size", [1, 7, 64, 150])
def test_factor(way: Inverse, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "BLOCK", 32)
    hessian, _ = problem(size)
    ours = np.asarray(jax.jit(way)(jnp.asarray(hessian, jnp.float32)), np.float64)
    assert not np.triu(ours, 1).any()
    assert np.linalg.norm(ours @ ours.T - hessian) < 1e-5 * np.linalg.norm(hessian)


def finish(count: jax.Array, solution: jax.Array) -> tuple[jax.Array, jax.Array]:
    return solution, count


@pytest.mark.parametrize("sweeps", [False, True])
@pytest.mark.parametrize(
    "counts",
    [[150], [0], [0, 1, 31, 32, 33, 64, 97, 149, 150], [90, 60, 60, 3, 90], [128, 96, 64]],
)
def test_solutions_on_prefixes(sweeps: bool, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "BLOCK", 32)
    size = 150
    hessian, right = problem(size)
    arguments = jnp.asarray(hessian, jnp.float32), jnp.asarray(right, jnp.float32), jnp.array(counts)
    if sweeps:
        ours, told = jax.jit(functools.partial(linalg.solve_by_sweeps, finish=finish))(*arguments)
    else:
        solve = functools.partial(linalg.prefix_solutions, widths=(40, 90, size), finish=finish)
        ours, told = jax.jit(solve)(*arguments)
    assert told.tolist() == counts
    for count, found in zip(counts, np.asarray(ours, np.float64), strict=True):
        assert not found[count:].any()
        exact = np.linalg.solve(hessian[:count, :count], right[:count])
        change = found[:count] - exact
        error = np.sum(change * (hessian[:count, :count] @ change))
        assert error <= 1e-8 * np.sum(exact * right[:count])


@pytest.mark.parametrize("way", [linalg.inverse, linalg.inverse_by_sweeps])
def test_a_matrix_that_is_not_positive_definite_has_none(
    way: Inverse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linalg, "BLOCK", 16)
    for bad in (np.diag([1.0] * 20 + [-1.0] + [1.0] * 19), np.full((40, 40), np.nan)):
        ours = jax.jit(way)(jnp.asarray(bad, jnp.float32))
        assert not np.isfinite(np.diagonal(ours)).all()


@pytest.mark.parametrize("platform", ["tpu", "cuda", "rocm"])
def test_elsewhere_nothing_is_left_to_libraries(platform: str) -> None:
    """The factor of a block is the exception."""
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((600, 600), (600, 8))]
    shapes.append(jax.ShapeDtypeStruct((3,), jnp.int32))
    solve = jax.jit(functools.partial(linalg.prefix_solutions, widths=(300, 600), finish=finish))
    for traced in (jax.jit(linalg.inverse).trace(shapes[0]), solve.trace(*shapes)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "600x600" in text
        for line in text.splitlines():
            if "cholesky" in line or "potrf" in line or "triangular" in line:
                assert "600" not in line
