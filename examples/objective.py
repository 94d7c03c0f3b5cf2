"""A custom objective: KL, plus how far the last hidden states turn away from the dense model's.

python -m tyr_jax.prune --preset quick --objective examples.objective:HiddenDirection --weight 0.5
"""

import dataclasses

import jax
import jax.numpy as jnp

from tyr_jax.scoring.objective import Objective, Student, TeacherBatch, mean_kl


@dataclasses.dataclass(frozen=True)
class HiddenDirection(Objective):
    """KL, plus how far the last layer's hidden states turn away from the dense model's."""

    weight: float = 1.0
    """Weight of 1 − cosine."""

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        """The last layer."""
        return (depth - 1,)

    def __call__(self, teacher: TeacherBatch, student: Student) -> jax.Array:
        """KL + weight · mean(1 − cos(h_dense, h_sparse))."""
        dense, sparse = (
            hidden / jnp.linalg.norm(hidden, axis=-1, keepdims=True)
            for hidden in (teacher.hidden, student.hidden)
        )
        return mean_kl(teacher, student) + self.weight * jnp.mean(1 - jnp.sum(dense * sparse, axis=-1))
