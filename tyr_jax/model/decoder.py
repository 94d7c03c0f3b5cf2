"""The Llama-family decoder as pure functions: RMSNorm, RoPE, grouped-query attention and SwiGLU, with biases
and norms of queries and keys where a model has them.

A block is cut where pruning needs it: `attention_units` and `ffn_units` give what enters the two prunable
projections (`o [N, H, D]` and `down [F, D]`), `attention_output` and `ffn_output` apply them. Whatever runs a
model goes through these. Only the search multiplies with the output weights itself
(`tyr_jax.scoring.nested.project`), and then calls `after_attention` and `after_ffn`.

Axis letters: `B` sequences, `T` tokens, `D` hidden, `N` query heads, `K` key/value heads, `G = N / K`,
`H` head dim, `F` FFN width, `X` experts, `V` vocabulary, `L` layers.

In a mixture of experts, every expert computes every token, and the router's weight is zero for those that the
token is not sent to. So such an FFN costs as much as a single one as wide as all experts together.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model.attention import Window, causal_attention, soft_cap
from tyr_jax.model.linear import linear
from tyr_jax.model.rope import Positions, amplitudes, frequencies
from tyr_jax.model.spec import Activation, Block, ModelConfig, Params
from tyr_jax.runtime import devices, offload

LARGEST_GATE = 7.0
"""Where the gated activation of GPT-OSS clamps both projections."""

SIGMOID_GAIN = 1.702
"""Factor in the sigmoid of that activation."""

ABSENT = -1e30
"""Logit of an entry, or score of an expert, that does not count. It is finite, so that the difference of two,
and the softmax over only such entries, is not NaN."""


class Rope(NamedTuple):
    """Rotary tables, `cos` and `sin`, each `[T, H/2]`; with a leading axis of layer types in a model
    whose layers treat positions differently."""

    cos: jax.Array
    sin: jax.Array


def rope_tables(config: ModelConfig, length: int) -> Rope:
    """Rotary tables for positions `0 … length-1`."""
    return rope_at(config, jnp.arange(length))


def rope_at(config: ModelConfig, positions: jax.Array) -> Rope:
    """Rotary tables for `positions [T]` (Su et al. 2021, rotate-half layout)."""
    tables = [_rope_of(config, each, positions) for each in config.layer_types]
    return jax.tree.map(lambda *each: jnp.stack(each), *tables) if config.mixed else tables[0]


def _rope_of(config: ModelConfig, layer_type: Positions, positions: jax.Array) -> Rope:
    """Rotary tables `[T, H/2]` of the layers of a type."""
    sizes = config.head_dim, config.rotated or config.head_dim
    angles = positions.astype(jnp.float32)[:, None] * frequencies(layer_type, *sizes)
    return Rope(*(amplitudes(layer_type, *sizes) * wave(angles) for wave in (jnp.cos, jnp.sin)))


def rope_of_block(block: Block, rope: Rope, config: ModelConfig) -> Rope:
    """The rotary tables `[T, H/2]` of a block."""
    return Rope(*(tables[block["layer_type"]] for tables in rope)) if config.mixed else rope


def window_of_block(block: Block, config: ModelConfig) -> Window:
    """How many positions a token of a block attends to, None for all. Where layers differ in it, it is data,
    and the largest integer stands for all."""
    windows = [each.window for each in config.layer_types]
    if len(set(windows)) == 1:
        return windows[0]
    largest = np.iinfo(np.int32).max
    return jnp.array([window or largest for window in windows], jnp.int32)[block["layer_type"]]


def rotate(x: jax.Array, rope: Rope) -> jax.Array:
    """Rotate heads `[B, T, N, H]` by their positions."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = rope.cos[:, None, :], rope.sin[:, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """`x [..., D]`, divided by its root mean square over the last axis and multiplied by `weight` (`[D]`, or
    any shape that broadcasts), computed in float32 (Zhang & Sennrich 2019)."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype) * weight


def before(block: Block, norm: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """A sublayer's input: the residual `x [B, T, D]` normed with `block[norm]`, or `x` itself in models
    without pre-norms."""
    return rms_norm(x, block[norm], config.norm_eps) if config.pre_norms else x


def norm_of_heads(x: jax.Array, weight: jax.Array, config: ModelConfig) -> jax.Array:
    """Queries or keys `x [B, T, N, H]`, normed over all heads together with `weight [N, H]`."""
    flat = rms_norm(x.reshape(*x.shape[:2], -1), weight.reshape(-1), config.norm_eps)
    return flat.reshape(x.shape)


def queries_keys_values(
    block: Block, x: jax.Array, rope: Rope, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries `[B, T, N, H]` and keys `[B, T, K, H]`, both rotated, and values `[B, T, K, H]`, from the
    residual `x [B, T, D]`."""
    normed = before(block, "attn_norm", x, config)
    lying = devices.as_they_lie((block["q"], block["k"], block["v"]))
    q, k, v = (linear(normed, weight) for weight in lying)
    if config.qkv_bias:
        q, k, v = q + block["q_bias"], k + block["k_bias"], v + block["v_bias"]
    if config.qk_norm:
        q, k = rms_norm(q, block["q_norm"], config.norm_eps), rms_norm(k, block["k_norm"], config.norm_eps)
    if config.wide_qk_norm:
        q, k = norm_of_heads(q, block["wide_q_norm"], config), norm_of_heads(k, block["wide_k_norm"], config)
    own = rope_of_block(block, rope, config)
    return rotate(q, own), rotate(k, own), v


def attention_units(block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
    """Head outputs `[B, T, N, H]` that enter the output projection, from the residual `x [B, T, D]`.

    If heads are not in groups, `block["kv_head"] [N]` has the key/value head of each query head.
    """
    q, k, v = queries_keys_values(block, x, rope, config)
    if "kv_head" in block:
        k, v = k[:, :, block["kv_head"]], v[:, :, block["kv_head"]]
    window = window_of_block(block, config)
    return causal_attention(q, k, v, window, block.get("sinks"), config.score_cap)


def attention_output(block: Block, units: jax.Array, config: ModelConfig) -> jax.Array:
    """What attention adds to the residual, `[B, T, D]`, from head outputs `[B, T, N, H]`."""
    # For a product over two axes, XLA would copy and transpose both operands.
    return after_attention(block, linear(units.reshape(*units.shape[:2], -1), block["o"]), config)


def after_attention(block: Block, out: jax.Array, config: ModelConfig) -> jax.Array:
    """What attention adds to the residual, from the product `[B, T, D]` with its output weights."""
    out = out + block["o_bias"] if "o_bias" in block else out
    return rms_norm(out, block["attn_post_norm"], config.norm_eps) if config.post_norms else out


def ffn_units(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Neuron activations `[B, T, F]` that enter the down projection, from the residual `x [B, T, D]`.

    Those of experts, `[B, T, X, F]`, are multiplied by the token's weight of the expert.
    """
    normed = before(block, "mlp_norm", x, config)
    gate, up = linear(normed, block["gate"]), linear(normed, block["up"])
    if "gate_bias" in block:
        gate, up = gate + block["gate_bias"], up + block["up_bias"]
    units = ACTIVATIONS[config.activation](gate, up)
    return units * routing(block, normed, config)[..., None] if config.experts else units


def routing(block: Block, normed: jax.Array, config: ModelConfig) -> jax.Array:
    """How much each expert counts for each token, `[B, T, X]`: zero for all but the few most probable
    (Shazeer et al. 2017). `normed [B, T, D]` is what enters the FFN.

    With `block["kept_experts"] [X]`, tokens are sent only to those that are true there.
    """
    scores = linear(normed, block["router"])
    scores = (scores + block["router_bias"] if "router_bias" in block else scores).astype(jnp.float32)
    if "kept_experts" in block:
        scores = jnp.where(block["kept_experts"], scores, ABSENT)
    probability = jax.nn.softmax(scores, axis=-1)
    experts = probability.shape[-1]
    weights, chosen = jax.lax.top_k(probability, min(config.routed, experts))
    if config.norm_routing:
        weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
    spread = jax.nn.one_hot(chosen, experts) * weights[..., None]
    weights = jnp.sum(spread, axis=-2).astype(normed.dtype)
    return weights * block["kept_experts"] if "kept_experts" in block else weights


def clamped(gate: jax.Array, up: jax.Array) -> jax.Array:
    """The gated activation of GPT-OSS, `gate · σ(1.702 gate) · (up + 1)` with both clamped at 7, of
    projections `gate` and `up [..., F]`."""
    gate, up = jnp.minimum(gate, LARGEST_GATE), jnp.clip(up, -LARGEST_GATE, LARGEST_GATE)
    return gate * jax.nn.sigmoid(SIGMOID_GAIN * gate) * (up + 1)


ACTIVATIONS: dict[Activation, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "silu": lambda gate, up: jax.nn.silu(gate) * up,
    "gelu_tanh": lambda gate, up: jax.nn.gelu(gate, approximate=True) * up,
    "clamped": clamped,
}
"""What neurons make of their gate and up projections."""


def ffn_output(block: Block, x: jax.Array, units: jax.Array, config: ModelConfig) -> jax.Array:
    """What the FFN adds to the residual `x [B, T, D]` before it, from neuron activations `[B, T, F]` or, of
    experts, `[B, T, X, F]`."""
    lead = units.shape[:-2] if config.experts else units.shape[:-1]
    return after_ffn(block, x, linear(units.reshape(*lead, -1), block["down"]), config)


def after_ffn(block: Block, x: jax.Array, out: jax.Array, config: ModelConfig) -> jax.Array:
    """What the FFN adds to the residual `x [B, T, D]` before it, from the product `out [B, T, D]` with its
    output weights."""
    if config.expert_bias:
        out = out + linear(routing(block, before(block, "mlp_norm", x, config), config), block["down_bias"])
    elif "down_bias" in block:
        out = out + block["down_bias"]
    return rms_norm(out, block["mlp_post_norm"], config.norm_eps) if config.post_norms else out


def ffn(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """What the FFN adds to the residual `x [B, T, D]` before it."""
    return ffn_output(block, x, ffn_units(block, x, config), config)


def add_attention(block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
    """The residual `[B, T, D]` after a layer's attention; unchanged if that is absent."""
    if "o" not in block:
        return x
    return x + attention_output(block, attention_units(block, x, rope, config), config)


def add_ffn(block: Block, x: jax.Array, config: ModelConfig) -> jax.Array:
    """The residual `[B, T, D]` after a layer's FFN; unchanged if that is absent."""
    if "down" not in block:
        return x
    return x + ffn(block, x, config)


def apply_block(block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
    """One decoder layer on the residual `[B, T, D]`."""
    return add_ffn(block, add_attention(block, x, rope, config), config)


def embed(params: Params, tokens: jax.Array) -> jax.Array:
    """Token embeddings `[B, T, D]` of `tokens [B, T]`."""
    return devices.divided(lambda table, tokens: table[tokens], whole=1)(params["embed"], tokens)


class ForwardState(NamedTuple):
    """The state of a forward pass: the residual stream `[..., T, D]`, and the outputs `[..., O, T, D]` of the
    observed layers so far."""

    residual: jax.Array
    outputs: jax.Array

    @classmethod
    def of_residual(cls, residual: jax.Array) -> Self:
        """The state before the first layer."""
        shape = residual.shape
        return cls(residual, jnp.zeros((*shape[:-2], 0, *shape[-2:]), residual.dtype))


@jax.jit
def begin_forward(params: Params, tokens: jax.Array) -> ForwardState:
    """The state before the first layer, for `tokens [B, ..., T]`. `params` has what is outside the blocks."""
    return ForwardState.of_residual(embed(params, tokens))


def watch(
    state: ForwardState,
    advance: Callable[[jax.Array, int, int], jax.Array],
    depth: int,
    observed: tuple[int, ...],
) -> ForwardState:
    """Run `depth` layers and keep the outputs of those that are `observed`. `advance(x, start, stop)` runs
    the layers from `start` up to but not including `stop` on the residual."""
    x, outputs = state.residual, {}
    for start, stop in itertools.pairwise([0, *sorted({layer + 1 for layer in observed} | {depth})]):
        x = advance(x, start, stop)
        outputs[stop - 1] = x
    kept = [outputs[layer][..., None, :, :] for layer in observed]
    return ForwardState(x, jnp.concatenate([state.outputs, *kept], axis=-3) if kept else state.outputs)


def scan_layers(
    layers: Any,
    apply: Callable[[Any, Rope, jax.Array], jax.Array],
    state: ForwardState,
    config: ModelConfig,
    observed: tuple[int, ...] = (),
) -> ForwardState:
    """Run `layers`, a pytree stacked on `L`, by `apply(slice of layers, rope, x) -> x`, and keep the outputs
    of those that are `observed`."""
    rope = rope_tables(config, state.residual.shape[-2])

    # The backward pass recomputes the inside of each layer instead of keeping it for all layers.
    @jax.checkpoint
    def step(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        return apply(layer, rope, x), None

    # Without any tensor, `layers` does not tell how many there are.
    depth = next((len(array) for array in jax.tree.leaves(layers)), config.depth)

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        part = jax.tree.map(lambda array: array[start:stop], layers)
        return jax.lax.scan(step, x, part, length=stop - start)[0]

    return watch(state, advance, depth, observed)


@functools.partial(jax.jit, static_argnames=("config", "observed"))
def run_blocks(
    blocks: Any, state: ForwardState, config: ModelConfig, observed: tuple[int, ...] = ()
) -> ForwardState:
    """Run decoder layers, by a scan over stacked blocks or a loop over a tuple of blocks that differ. Keeps
    the outputs of those that are `observed`, counted from the first of `blocks`."""
    apply = devices.divided(lambda block, rope, x: apply_block(block, x, rope, config), whole=2)
    if not isinstance(blocks, tuple):
        return scan_layers(blocks, apply, state, config, observed)
    rope = rope_tables(config, state.residual.shape[-2])
    step = jax.checkpoint(apply)

    def advance(x: jax.Array, start: int, stop: int) -> jax.Array:
        for block in blocks[start:stop]:
            x = step(block, rope, x)
        return x

    return watch(state, advance, len(blocks), observed)


def run_model(
    params: Params, texts: Iterable[jax.Array], config: ModelConfig, observed: tuple[int, ...] = ()
) -> Iterator[ForwardState]:
    """Run all layers on each of `texts`, tokens `[B, T]`, and keep the outputs of those that are `observed`.
    A layer on disk runs on all texts before the next one is read."""
    states: Iterator[ForwardState] = (begin_forward(outside(params), tokens) for tokens in texts)
    for segment in offload.segments(params["blocks"], range(config.depth)):
        blocks = devices.spread(segment.weights, config.hidden_axes)
        run = functools.partial(run_blocks, blocks, config=config, observed=segment.own(observed))
        states = map(run, states) if segment.stop == config.depth else iter([run(state) for state in states])
    return states


def outside(params: Params) -> Params:
    """The parameters outside the blocks."""
    return {name: array for name, array in params.items() if name != "blocks"}


def final_hidden(params: Params, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Apply the last norm to `x [B, ..., D]`."""
    norm = devices.divided(lambda weight, x: rms_norm(x, weight, config.norm_eps), whole=1)
    return norm(params["final_norm"], x)


class Capped(NamedTuple):
    """A head whose logits are soft-capped: its `rows [V, D]`, and the `cap []`."""

    rows: jax.Array
    cap: jax.Array


Head = jax.Array | Capped
"""What turns hidden states into logits: rows `[V, D]`, or capped ones."""


def head(params: Params) -> Head:
    """The output head: the output embedding `[V, D]`, which is the input embedding if the two are tied, or
    `Capped` if logits are soft-capped."""
    rows = params["unembed"] if "unembed" in params else params["embed"]
    return Capped(rows, params["logit_cap"]) if "logit_cap" in params else rows


def rows_of(head: Head) -> jax.Array:
    """The rows `[V, D]` of a head."""
    return head.rows if isinstance(head, Capped) else head


def cap_of(head: Head) -> jax.Array | None:
    """The soft-cap of a head's logits, if it has one."""
    return head.cap if isinstance(head, Capped) else None


def logits(rows: jax.Array, hidden: jax.Array) -> jax.Array:
    """Logits `[..., v]` in float32, before any soft-cap, for `rows [v, D]` of the head, from normed hidden
    states `[..., D]`."""
    return jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def hidden_states(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Normed last hidden states `[B, T, D]` of `tokens [B, T]`, which the head turns into logits."""
    state = run_blocks(params["blocks"], ForwardState.of_residual(embed(params, tokens)), config)
    return final_hidden(params, state.residual, config)


def forward(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """Logits `[B, T, V]` in float32 of `tokens [B, T]`."""
    own = head(params)
    return soft_cap(logits(rows_of(own), hidden_states(params, tokens, config)), cap_of(own))
