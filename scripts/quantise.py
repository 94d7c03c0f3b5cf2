"""Fewer bits, or 2:4 zeros, for the matrices of a model, on top of pruning (paper, Table 7).

A `Rule` says which values a matrix may have. `rounded` takes the nearest ones: for integers, that is round-
to-nearest, as in Nagel et al., "A White Paper on Neural Network Quantization", 2021; for zeros, the largest
two of every four, as in Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021. `compensated` goes
through the input channels in order and lets the later ones make up for the error of each: the optimal brain
surgeon's update in a fixed order, with the same Hessian `Hs = XᵀX + λI` as pruning. For integers, that is
Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", ICLR 2023; for zeros, Frantar and Alistarh, "SparseGPT: Massive Language Models Can be
Accurately Pruned in One-Shot", ICML 2023.

Axis letters here: `d_in` input channels, `D` outputs, `g` channels decided on together; `B` sequences,
`T` tokens.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError, require
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning import hessian, linalg
from tyr_jax.pruning.compress import joined
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.pruning.stream import embedded, token_weights, weighed
from tyr_jax.runtime import devices

DAMPING = 0.01
"""λ as a fraction of the mean diagonal of XᵀX, as in GPTQ and SparseGPT."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """Base of all rules."""

    group: int = 0
    """Input channels that are decided on together; 0 for all."""

    def decide(self, rows: jax.Array, spread: jax.Array) -> jax.Array:
        """The decision for a group (its scales, or which values stay), from its `rows [g, D]`; an error in
        row i counts as 1 / `spread [g]`²."""
        raise NotImplementedError

    def apply(self, decision: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
        """The allowed row `[D]` nearest to `row [D]`, which is row `index` of the group."""
        raise NotImplementedError

    def bits_of(self, channels: int, outputs: int) -> float:
        """Bits that a matrix `[d_in, D]` of these sizes takes."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Integers(Rule):
    """Integers of `bits`, symmetric around zero, times a scale in float16 for every output and group of
    channels."""

    bits: int = 8

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        require(2 <= self.bits <= 16, "bits", self.bits, "between 2 and 16")
        require(self.group >= 0, "group", self.group, "at least 0")

    @property
    def largest(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1

    def decide(self, rows: jax.Array, spread: jax.Array) -> jax.Array:
        """The scale of every output `[D]`."""
        scale = (jnp.max(jnp.abs(rows), axis=0) / self.largest).astype(jnp.float16).astype(rows.dtype)
        return jnp.where(scale > 0, scale, 1.0)

    def apply(self, decision: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
        """The row as integers times their scale."""
        return jnp.clip(jnp.round(row / decision), -self.largest, self.largest) * decision

    def bits_of(self, channels: int, outputs: int) -> float:
        """The integers, and the scales."""
        groups = -(-channels // self.group) if self.group else 1
        return outputs * (channels * self.bits + 16 * groups)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Zeros(Rule):
    """At most `kept` values that are not zero in every `group` of consecutive input channels of an output."""

    kept: int = 2
    group: int = 4

    def __post_init__(self) -> None:
        """Refuse to keep none, or more than there are."""
        require(0 < self.kept <= self.group, "kept", self.kept, f"between 1 and the group's {self.group}")

    def decide(self, rows: jax.Array, spread: jax.Array) -> jax.Array:
        """Which values stay, `[g, D]`: those whose removal would cost most."""
        cost = (rows / spread[:, None]) ** 2
        return jnp.argsort(jnp.argsort(-cost, axis=0), axis=0) < self.kept

    def apply(self, decision: jax.Array, row: jax.Array, index: jax.Array) -> jax.Array:
        """The row with zeros where its values leave."""
        return row * decision[index]

    def bits_of(self, channels: int, outputs: int) -> float:
        """Values of 16 bits, each with its place in the group."""
        place = math.ceil(math.log2(self.group))
        return outputs * channels * (self.kept / self.group) * (16 + place)


@functools.partial(jax.jit, static_argnames="rule")
def rounded(weight: jax.Array, rule: Rule) -> jax.Array:
    """The allowed matrix nearest to `weight [d_in, D]`, every value by itself."""
    groups = _in_groups(weight.astype(jnp.float32), rule)

    def fix(rows: jax.Array) -> jax.Array:
        decision = rule.decide(rows, jnp.ones(len(rows)))
        return jax.vmap(lambda row, index: rule.apply(decision, row, index))(rows, jnp.arange(len(rows)))

    fixed = jax.lax.map(fix, groups)
    return fixed.reshape(-1, weight.shape[1])[: len(weight)].astype(weight.dtype)


@functools.partial(jax.jit, static_argnames="rule")
def compensated(weight: jax.Array, gram: jax.Array, rule: Rule) -> jax.Array:
    """An allowed matrix whose outputs are close to those of `weight [d_in, D]` on inputs of the XᵀX
    `gram [d_in, d_in]`.

    With `Hs⁻¹ = UᵀU`, U upper triangular, fixing channel p at `Q_p` takes `U_p,later (W_p − Q_p) / U_pp` from
    the later channels. A channel without any input is only rounded.
    """
    root = linalg.factor(linalg.inverse(hessian.damp(gram, DAMPING, "mean"))).T
    groups = _in_groups(weight.astype(jnp.float32), rule)
    count, group, outputs = groups.shape
    padding = count * group - len(weight)
    # The identity, so that the padding neither gives nor takes.
    root = jnp.pad(root, ((0, padding), (0, padding)))
    root += jnp.diag((jnp.arange(count * group) >= len(weight)).astype(root.dtype))

    def fix_group(weight: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        rows = jax.lax.dynamic_slice_in_dim(weight, start, group)
        across = jax.lax.dynamic_slice_in_dim(root, start, group)
        own = jax.lax.dynamic_slice_in_dim(across, start, group, axis=1)
        decision = rule.decide(rows, jnp.diagonal(own))

        def fix(index: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            rows, errors = state
            fixed = rule.apply(decision, rows[index], index)
            error = (rows[index] - fixed) / own[index, index]
            rows = (rows - own[index][:, None] * error).at[index].set(fixed)
            return rows, errors.at[index].set(error)

        rows, errors = jax.lax.fori_loop(0, group, fix, (rows, jnp.zeros_like(rows)))
        later = across * (jnp.arange(len(weight)) >= start + group)
        weight -= jnp.matmul(later.T, errors, precision=HIGHEST)
        return jax.lax.dynamic_update_slice_in_dim(weight, rows, start, 0), None

    flat = groups.reshape(-1, outputs)
    fixed = jax.lax.scan(fix_group, flat, jnp.arange(count) * group)[0]
    return fixed[: len(weight)].astype(weight.dtype)


def _in_groups(weight: jax.Array, rule: Rule) -> jax.Array:
    """`weight [d_in, D]` in the groups of a rule, `[n, g, D]`, the last one padded with zeros."""
    group = rule.group or len(weight)
    return jnp.pad(weight, ((0, -len(weight) % group), (0, 0))).reshape(-1, group, weight.shape[1])


STAGES: tuple[tuple[str, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
"""The matrices of a block that have the same inputs, in the order in which they are used."""


@functools.partial(jax.jit, static_argnames=("stage", "config"), donate_argnames="gram")
def _with_inputs(
    block: Block, x: jax.Array, weights: jax.Array, gram: jax.Array, stage: int, config: ModelConfig
) -> jax.Array:
    """`gram [n, d_in, d_in]` of n devices, with XᵀX of what enters the matrices of a stage added, from the
    residual `x [B, T, D]` before the block. Tokens weigh `weights [B, T]`."""

    def collect(block: Block, x: jax.Array, weights: jax.Array, gram: jax.Array) -> jax.Array:
        rope = decoder.rope_tables(config, x.shape[1])
        after = x if stage < 2 else decoder.add_attention(block, x, rope, config)
        inputs = (
            lambda: decoder.before(block, "attn_norm", x, config),
            lambda: decoder.attention_units(block, x, rope, config),
            lambda: decoder.before(block, "mlp_norm", after, config),
            lambda: decoder.ffn_units(block, after, config),
        )[stage]()
        return hessian.update(gram, weighed(inputs, weights))

    return devices.divided(collect, whole=1)(block, x, weights, gram)


Change = Callable[[jax.Array, jax.Array], jax.Array]
"""From a matrix `[d_in, D]` and the XᵀX `[d_in, d_in]` of its inputs, the matrix in its place."""


def change_matrices(
    params: Params, texts: Sequence[np.ndarray], config: ModelConfig, change: Change
) -> Params:
    """The model with every matrix of its blocks changed in turn, on the inputs that the matrices changed
    before it give. `texts` are arrays of tokens `[B, T]`. Embeddings and output head stay as they are.

    Raises:
        UserError: The model is a mixture of experts.
    """
    if config.experts:
        raise UserError("the matrices of experts cannot be quantised here; choose a model without experts")
    stream, real = embedded(params, texts)
    # Sequences that only fill up a batch weigh nothing.
    weights = [token_weights(x, jnp.int32(count), even=True) for x, count in zip(stream, real, strict=True)]
    changed = []
    for layer in range(config.depth):
        block = layer_block(params["blocks"], layer)
        for stage, names in enumerate(STAGES):
            # Where a sublayer is removed, its matrices are absent.
            if names[0] in block:
                block = block | _changed(block, stream, weights, stage, config, change)
        stream = [_after(block, x, config) for x in stream]
        changed.append(block)
    return params | {"blocks": joined(changed, config)}


def _changed(
    block: Block,
    stream: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    stage: int,
    config: ModelConfig,
    change: Change,
) -> dict[str, Any]:
    """The matrices of a stage of a block, changed."""
    first = block[STAGES[stage][0]]
    size = first.size // config.hidden if STAGES[stage] in (("o",), ("down",)) else config.hidden
    gram = devices.copies(hessian.init(size))
    for x, each in zip(stream, weights, strict=True):
        gram = _with_inputs(block, x, each, gram, stage, config)
    whole = hessian.finish(gram)
    return {
        name: change(block[name].reshape(size, -1), whole).reshape(block[name].shape)
        for name in STAGES[stage]
    }


@functools.partial(jax.jit, static_argnames="config")
def _after(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    def run(block: Block, x: jax.Array) -> jax.Array:
        return decoder.apply_block(block, x, decoder.rope_tables(config, x.shape[1]), config)

    return devices.divided(run, whole=1)(block, x)
