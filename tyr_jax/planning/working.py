"""Working memory: bytes that a device needs only while a program runs, by program."""

from tyr_jax.model.attention import LONG_QUERY_CHUNK
from tyr_jax.model.prediction import VOCABULARY_CHUNK
from tyr_jax.model.spec import UNIT_AXES, ModelConfig
from tyr_jax.planning.load import (
    FLOAT,
    Load,
    calibration_tokens,
    site_channels,
    site_sizes,
    sublayer_parameters,
)
from tyr_jax.pruning.reconstruction import MIXED_BATCHES, STEP_TOKENS
from tyr_jax.runtime.batches import BATCH_TOKENS

ADDING_DEVICES = 64
"""From this many devices on, parts are gathered by a sum, as the TPU compiler does on three-dimensional
topologies."""

BACKWARD = 2.5
"""Working memory of the backward pass through a layer, as a multiple of the layer's activations without
scores."""

UNFUSED = 2 / 3
"""Share of an FFN's working memory that is in use while its statistics are computed. On a CPU it is all of
it; on TPUs it is next to none, because products there are fused with the operations before and after them."""


def gathered(count: int, load: Load) -> float:
    """Bytes of working memory when devices gather `count` numbers, of which each has a part. If they gather
    by a sum, each device's part lies among zeros: this takes the zeros, the zeros with the part, and the
    sum."""
    _, _, itemsize, n = load
    return itemsize * count * (0 if n == 1 else 3 if n >= ADDING_DEVICES else 1)


def attention_working(config: ModelConfig, tokens: int, length: int, itemsize: int) -> float:
    """Bytes of working memory in attention on `tokens` tokens, in sequences of `length`."""
    shape, dim = config.dense_shape, config.head_dim
    numbers = 2 * config.hidden + dim * (3 * shape.heads + 4 * shape.kv_heads)
    scores = shape.heads * min(LONG_QUERY_CHUNK, length)
    return tokens * (itemsize * numbers + 2 * FLOAT * scores)


def ffn_working(config: ModelConfig, tokens: int, itemsize: int) -> float:
    """Bytes of working memory in an FFN on `tokens` tokens."""
    return tokens * itemsize * (2 * config.hidden + 2 * site_channels(config)[1])


def layer_working(tokens: int, length: int, load: Load) -> float:
    """Bytes of working memory when a layer runs on `tokens` tokens of a device. If weights are divided, those
    of one sublayer are gathered at a time."""
    config, _, itemsize, n = load
    attention, ffn = (itemsize * (n > 1) * sublayer_parameters(config, sublayer) for sublayer in UNIT_AXES)
    return max(
        attention + attention_working(config, tokens, length, itemsize),
        ffn + ffn_working(config, tokens, itemsize),
    )


def head_working(tokens: int, load: Load) -> float:
    """Bytes of working memory when the head runs: it is gathered, and one part of the vocabulary has logits
    at a time."""
    config = load.config
    head = gathered(config.vocab * config.hidden, load)
    return head + tokens * FLOAT * (2 * VOCABULARY_CHUNK + config.hidden)


def statistics_working(load: Load) -> float:
    """Bytes of working memory when XᵀX of an FFN's site is added up, in place: a device's own XᵀX, and what
    computes the inputs of the site, for which one matrix of the FFN is gathered at a time."""
    config, settings, itemsize, n = load
    together, channels = min(BATCH_TOKENS, -(-calibration_tokens(settings) // n)), site_channels(config)[1]
    entering = gathered(config.hidden * channels, load) + UNFUSED * ffn_working(config, together, itemsize)
    return FLOAT * channels * site_sizes(config)[1] + entering


def site_working(load: Load) -> float:
    """Bytes of working memory when an FFN's site is pruned.

    These are a level's weights and a device's columns of XᵀX (of all experts), of Hs, of Hs⁻¹ and of the
    updated Hs⁻¹; with a metric, also its factor and the weights in its coordinates. Before there is an Hs⁻¹,
    only the columns of XᵀX and Hs exist, but the dense weight is gathered. The larger sum counts.
    """
    config, settings, _, n = load
    size, channels = site_sizes(config)[1], site_channels(config)[1]
    columns, weights = FLOAT * size**2 / n, FLOAT * channels * config.hidden / n
    statistics = FLOAT * channels * size / n
    metric = 0 if settings.pruning.metric == "none" else weights + FLOAT * config.hidden**2
    gathering = columns + gathered(channels * config.hidden, load)
    return weights + statistics + max(3 * columns + metric, gathering)


def drift_working(load: Load) -> float:
    """Bytes of working memory when drift at an FFN's site is added up, Xᵀd next to XᵀX; or when it is
    corrected: a device's columns of XᵀX, of Hs and of the swept Hs, and of the weights, and its own Xᵀd."""
    config, _, _, n = load
    size, channels = site_sizes(config)[1], site_channels(config)[1]
    pull = FLOAT * channels * config.hidden
    solving = FLOAT * size * (channels + 2 * size) / n
    return max(statistics_working(load) + pull, solving + pull + pull / n)


def reconstruction_working(load: Load) -> float:
    """Bytes of working memory while an FFN learns: its mini-batches, and either the mixing of text into
    mini-batches or a step."""
    config, settings, itemsize, n = load
    kept = 1 - min(settings.sparsity)
    ffn = round(kept * sublayer_parameters(config, "ffn"))
    # Weights before learning, before a step and after it, and two moments; weights are gathered one by one.
    state = (itemsize + 4 * FLOAT) * ffn / n
    state += FLOAT / itemsize * gathered(ffn // 3, load) + (n > 1) * FLOAT * 2 * ffn / 3
    minibatch = -(-STEP_TOKENS // n)
    learning = state + minibatch * FLOAT * (2 * config.hidden + 2 * kept * site_channels(config)[1])
    # Targets of the text that is mixed (and residuals from disk); both concatenated, and in their new order.
    mixing = (5 + settings.offload) * mixed_tokens(load) * itemsize * config.hidden / n
    return minibatch_bytes(load) + max(mixing, learning)


def mixed_tokens(load: Load) -> int:
    """Tokens that are mixed into mini-batches at a time."""
    return min(calibration_tokens(load.settings), load.n * BATCH_TOKENS * MIXED_BATCHES)


def minibatch_bytes(load: Load) -> float:
    """Bytes per device for what an FFN learns from: residuals and targets."""
    config, settings, itemsize, n = load
    tokens = mixed_tokens(load) if settings.offload else calibration_tokens(settings)
    return 2 * tokens * itemsize * config.hidden / n
