"""Tabulated problems: budgeted allocation of sparsity levels, to try a search on without a model."""

from tyr_jax.problems.problem import Problem, stack_problems
from tyr_jax.problems.storage import load_problem, problem_names, save_problem
from tyr_jax.problems.synthetic import synthetic_problem

__all__ = ["Problem", "load_problem", "problem_names", "save_problem", "stack_problems", "synthetic_problem"]
