"""Budgeted allocation of sparsity levels, to try searches on: synthetic problems, and exact ones of a small
language model."""

from tyr_jax.problems.exact import ExactProblem, load_problem, problem_names
from tyr_jax.problems.problem import Problem, stack_problems
from tyr_jax.problems.synthetic import synthetic_problem

__all__ = ["ExactProblem", "Problem", "load_problem", "problem_names", "stack_problems", "synthetic_problem"]
