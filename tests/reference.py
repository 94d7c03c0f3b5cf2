"""References for tests: the decoder and its losses, written again in plain numpy and float64.

They share no code with `tyr_jax.model.decoder`. The module also makes supernets of random weights, for tests
of code that reads a supernet.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.space import LevelGrid

Array = np.ndarray


def f64(x: Any) -> Array:
    return np.asarray(x, np.float64)


def norm64(x: Array, weight: Array, eps: float) -> Array:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * f64(weight)


def rotate64(x: Array, theta: float | None) -> Array:
    """Rotate `x [T, H]` by position, pairing dimension i with i + H/2. Without `theta`, nothing turns."""
    if theta is None:
        return x
    length, size = x.shape
    out = np.empty_like(x)
    for i in range(size // 2):
        angle = np.arange(length) * theta ** (-2 * i / size)
        a, b = x[:, i], x[:, i + size // 2]
        out[:, i] = a * np.cos(angle) - b * np.sin(angle)
        out[:, i + size // 2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def attention64(q: Array, k: Array, v: Array, window: int | None = None) -> Array:
    """Causal attention of one head, `[T, H]` each."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    behind = np.arange(len(q))[:, None] - np.arange(len(q))
    visible = (behind >= 0) & (behind < (window or len(q)))
    return np.exp(log_softmax64(np.where(visible, scores, -np.inf))) @ v


def head_outputs64(block: dict[str, Any], x: Array, config: ModelConfig) -> Array:
    """Inputs `[B, T, N, H]` of the output projection, from residuals `x [B, T, D]`."""
    normed = norm64(x, block["attn_norm"], config.norm_eps)
    q, k, v = (np.einsum("btd,dnh->btnh", normed, f64(block[name])) for name in "qkv")
    if config.qkv_bias:
        q, k, v = q + f64(block["q_bias"]), k + f64(block["k_bias"]), v + f64(block["v_bias"])
    if config.qk_norm:
        q, k = norm64(q, block["q_norm"], config.norm_eps), norm64(k, block["k_norm"], config.norm_eps)
    positions = config.layer_types[int(block.get("layer_type", 0))]
    out = np.empty_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(len(x)):
        for n in range(q.shape[2]):
            query, key = (rotate64(a, positions.theta) for a in (q[b, :, n], k[b, :, n // group]))
            out[b, :, n] = attention64(query, key, v[b, :, n // group], positions.window)
    return out


def neurons64(block: dict[str, Any], x: Array, config: ModelConfig) -> Array:
    """Inputs `[B, T, F]` of the down projection, from residuals `x [B, T, D]`."""
    normed = norm64(x, block["mlp_norm"], config.norm_eps)
    gate, up = normed @ f64(block["gate"]), normed @ f64(block["up"])
    if config.mlp_bias:
        gate, up = gate + f64(block["gate_bias"]), up + f64(block["up_bias"])
    return gate / (1 + np.exp(-gate)) * up


def add_attention64(block: dict[str, Any], x: Array, units: Array) -> Array:
    return x + np.einsum("btnh,nhd->btd", units, f64(block["o"])) + f64(block.get("o_bias", 0.0))


def add_ffn64(block: dict[str, Any], x: Array, units: Array) -> Array:
    return x + units @ f64(block["down"]) + f64(block.get("down_bias", 0.0))


def layer_outputs64(params: dict[str, Any], tokens: Array, config: ModelConfig) -> list[Array]:
    """Residuals `[B, T, D]` after every layer."""
    x = f64(params["embed"])[tokens]
    outputs = []
    for layer in range(config.depth):
        block = layer_block(params["blocks"], layer)
        if "o" in block:
            x = add_attention64(block, x, head_outputs64(block, x, config))
        if "down" in block:
            x = add_ffn64(block, x, neurons64(block, x, config))
        outputs.append(x)
    return outputs


def logits64(params: dict[str, Any], tokens: Array, config: ModelConfig) -> Array:
    """Logits `[B, T, V]`."""
    hidden = norm64(layer_outputs64(params, tokens, config)[-1], params["final_norm"], config.norm_eps)
    return hidden @ f64(params.get("unembed", params["embed"])).T


def log_softmax64(logits: Array) -> Array:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl64(dense: Array, sparse: Array) -> Array:
    """KL(dense ‖ sparse) in nats at each position, from logits `[..., V]`."""
    log_p, log_q = log_softmax64(f64(dense)), log_softmax64(f64(sparse))
    return np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)


def nll64(logits: Array, tokens: Array) -> Array:
    """Next-token NLL `[B, T-1]` in nats, from logits `[B, T, V]` of `tokens [B, T]`."""
    log_p = log_softmax64(f64(logits))[:, :-1]
    return -np.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]


def random_supernet(config: ModelConfig, grid: LevelGrid, attention_units: int, seed: int = 0) -> Supernet:
    """A supernet of random weights, zero where a level of `grid` has no unit, and random ranks."""
    rng = np.random.default_rng(seed)
    shape, depth, levels = config.dense_shape, config.depth, grid.kept.shape[-1]

    def ranks(*counts: int) -> np.ndarray:
        sites = depth * int(np.prod(counts[:-1]))
        drawn = np.stack([rng.permutation(counts[-1]) for _ in range(sites)]).astype(np.int32)
        return drawn.reshape(depth, *counts)

    def weights(rank: np.ndarray, kept: np.ndarray, *dims: int) -> np.ndarray:
        values = 0.2 * rng.standard_normal((depth, levels, *dims, config.hidden)).astype(np.float32)
        inside = rank[:, None] < kept.reshape(depth, levels, *[1] * (rank.ndim - 1))
        inside = inside.repeat(dims[rank.ndim - 2] // rank.shape[-1], axis=-1)
        return values * inside.reshape(*inside.shape, *[1] * (values.ndim - inside.ndim))

    settings = PruningSettings(units=() if attention_units == shape.heads else ("kv_group",))
    kinds = settings.site_kinds(config)
    drawn = {kind.name: ranks(*kind.rank_shape(config)) for kind in kinds}
    return Supernet(
        weights={
            kind.name: jnp.asarray(weights(drawn[kind.name], grid.kept[row], *kind.shape(config)[:-1]))
            for row, kind in enumerate(kinds)
        },
        ranks={name: jnp.asarray(rank) for name, rank in drawn.items()},
        kept=jnp.asarray(grid.kept),
        exists=jnp.asarray(grid.exists),
        error=jnp.zeros((2, depth, levels)),
        share=jnp.zeros((2, depth)),
        damping=jnp.zeros((2, depth)),
        kinds=kinds,
    )


def select(params: dict[str, Any], supernet: Supernet, levels: Array) -> dict[str, Any]:
    """Dense-shaped params with the pruned projections at `levels [S, L]`. What else belongs to removed units
    is as it was."""
    layers = np.arange(levels.shape[1])
    pruned = {
        kind.output: supernet.weights[kind.name][layers, levels[row]]
        for row, kind in enumerate(supernet.kinds)
    }
    admitted = jax.vmap(supernet.admitted, in_axes=(0, 1))(layers, levels)
    return params | {"blocks": params["blocks"] | pruned | admitted}


HIDDEN, VOCAB = 16, 50


def head(tied: bool, scale: float = 1.0, cap: float | None = None) -> dict[str, jax.Array]:
    """Params of a model that only has a head, [VOCAB, HIDDEN], perhaps with a soft-cap."""
    rng = np.random.default_rng(5)
    params = {"embed": scale * rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)}
    if not tied:
        params["unembed"] = scale * rng.standard_normal((VOCAB, HIDDEN)).astype(np.float32)
    if cap is not None:
        params["logit_cap"] = np.float32(cap)
    return {name: jnp.asarray(array) for name, array in params.items()}


def states(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Random hidden states `[*shape, HIDDEN]`."""
    return np.random.default_rng(seed).standard_normal((*shape, HIDDEN)).astype(np.float32)


def logits(params: dict[str, jax.Array], hidden: np.ndarray) -> np.ndarray:
    """Logits in float64."""
    matrix = params.get("unembed", params["embed"])
    plain = hidden.astype(np.float64) @ np.asarray(matrix, np.float64).T
    cap = params.get("logit_cap")
    return plain if cap is None else float(cap) * np.tanh(plain / float(cap))
