"""The Llama-family decoder as pure functions: RMSNorm, RoPE, grouped-query attention, SwiGLU.

A block is cut where pruning needs it: `attention_units` and `ffn_units` give what enters the two prunable
projections (`o [N, H, D]` and `down [F, D]`), `attention_output` and `ffn_output` apply them. Everything
that runs a model (dense, a supernet candidate, a compressed model) goes through these four.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `N` query heads, `K` key/value heads, `G = N / K`,
`H` head dim, `F` FFN width, `V` vocabulary, `L` layers.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax import devices
from tyr_jax.model.attention import causal_attention
from tyr_jax.model.spec import Block, ModelConfig, Params, RopeScaling


class Rope(NamedTuple):
    """Rotary tables, `cos` and `sin`, each `[T, H/2]`."""

    cos: jax.Array
    sin: jax.Array


def scale_frequencies(frequencies: jax.Array, scaling: RopeScaling) -> jax.Array:
    """Llama-3 scaling of rotary frequencies `[H/2]`: long wavelengths slow down, middle ones blend."""
    wavelength = 2 * math.pi / frequencies
    long, short = (
        scaling.original_max_positions / factor
        for factor in (scaling.low_freq_factor, scaling.high_freq_factor)
    )
    blend = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    middle = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    slow = jnp.where(wavelength > long, frequencies / scaling.factor, frequencies)
    return jnp.where((wavelength <= long) & (wavelength >= short), middle, slow)


def rope_tables(config: ModelConfig, length: int) -> Rope:
    """Rotary tables for positions `0 … length-1`, `[T, H/2]`."""
    return rope_at(config, jnp.arange(length))


def rope_at(config: ModelConfig, positions: jax.Array) -> Rope:
    """Rotary tables for `positions [T]`, `[T, H/2]` (Su et al. 2021, rotate-half layout)."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = scale_frequencies(frequencies, config.rope_scaling)
    angles = positions.astype(jnp.float32)[:, None] * frequencies
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotate heads `[B, T, N, H]` by their positions."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = rope.cos[:, None, :], rope.sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis, computed in float32 (Zhang & Sennrich 2019)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


def queries_keys_values(
    block: Block, x: jax.Array, rope: Rope, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries `[B, T, N, H]` and keys, and values `[B, T, K, H]`, from the residual `x [B, T, D]`."""
    normed = rms_norm(x, block["attn_norm"], config.norm_eps)
    q = jnp.einsum("btd,dnh->btnh", normed, block["q"])
    k = jnp.einsum("btd,dkh->btkh", normed, block["k"])
    v = jnp.einsum("btd,dkh->btkh", normed, block["v"])
    if config.qkv_bias:
        q, k, v = q + block["q_bias"], k + block["k_bias"], v + block["v_bias"]
    return rotate(q, rope), rotate(k, rope), v


def attention_units(block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
    """Head outputs `[B, T, N, H]` that enter the output projection, from the residual `x [B, T, D]`.

    `block["kv_head"] [N]` names the key/value head of each query head where heads do not lie in groups.
    """
    q, k, v = queries_keys_values(block, x, rope, config)
    if "kv_head" in block:
        k, v = k[:, :, block["kv_head"]], v[:, :, block["kv_head"]]
    return causal_attention(q, k, v, config.window)


def attention_output(block: Block, units: jax.Array) -> jax.Array:
    """What attention adds to the residual, `[B, T, D]`, from head outputs `[B, T, N, H]`."""
    out = jnp.einsum("btnh,nhd->btd", units, block["o"])
    return out + block["o_bias"] if "o_bias" in block else out


def ffn_units(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Neuron activations `[B, T, F]` that enter the down projection, from the residual `x [B, T, D]`."""
    normed = rms_norm(x, block["mlp_norm"], config.norm_eps)
    gate = jnp.einsum("btd,df->btf", normed, block["gate"])
    up = jnp.einsum("btd,df->btf", normed, block["up"])
    if config.mlp_bias:
        gate, up = gate + block["gate_bias"], up + block["up_bias"]
    return jax.nn.silu(gate) * up


def ffn_output(block: Block, units: jax.Array) -> jax.Array:
    """What the FFN adds to the residual, `[B, T, D]`, from neuron activations `[B, T, F]`."""
    out = jnp.einsum("btf,fd->btd", units, block["down"])
    return out + block["down_bias"] if "down_bias" in block else out


def apply_block(block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
    """One decoder layer on the residual `[B, T, D]`; an absent sublayer adds nothing."""
    if "o" in block:
        x = x + attention_output(block, attention_units(block, x, rope, config))
    if "down" in block:
        x = x + ffn_output(block, ffn_units(block, x, config))
    return x


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings `[B, T, D]` of `tokens [B, T]`."""
    return devices.divided(lambda table, tokens: table[tokens], whole=1)(params["embed"], tokens)


def run_blocks(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """All decoder layers on `x [B, T, D]`: a scan over stacked blocks, a loop over blocks that differ."""
    rope = rope_tables(config, x.shape[1])
    apply = devices.divided(lambda block, rope, x: apply_block(block, x, rope, config), whole=2)
    if isinstance(params["blocks"], tuple):
        for block in params["blocks"]:
            x = apply(block, rope, x)
        return x

    def step(x: jax.Array, block: Block) -> tuple[jax.Array, None]:
        return apply(block, rope, x), None

    # Blocks without any tensor do not tell how many they are.
    return jax.lax.scan(step, x, params["blocks"], length=config.depth)[0]


def final_hidden(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The last norm, on `x [B, ..., D]`."""
    norm = devices.divided(lambda weight, x: rms_norm(x, weight, config.norm_eps), whole=1)
    return norm(params["final_norm"], x)


def head(params: Params) -> jax.Array:
    """The output embedding `[V, D]`; the input embedding where they are tied."""
    return params["unembed"] if "unembed" in params else params["embed"]


def logits(rows: jax.Array, hidden: jax.Array) -> jax.Array:
    """Logits `[..., v]` in float32 of normed hidden states `[..., D]` for `rows [v, D]` of the head."""
    return jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def hidden_states(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Normed last hidden states `[B, T, D]` of `tokens [B, T]`: what the head turns into logits."""
    return final_hidden(params, run_blocks(params, embed(params, tokens), config), config)


def forward(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits `[B, T, V]` in float32 of `tokens [B, T]`."""
    return logits(head(params), hidden_states(params, tokens, config))
