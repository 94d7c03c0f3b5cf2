"""How a layer's attention treats positions: its rotary embeddings (Su et al. 2021) and its sliding window.

Axis letters: `H` head dim.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Position interpolation (Chen et al. 2023): every frequency is divided by `factor`."""

    factor: float

    def scaled(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """The scaled frequencies, from plain `frequencies [H/2]` of base `theta`."""
        return frequencies / self.factor

    @property
    def amplitude(self) -> float:
        """Multiplies rotated queries and keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama-3.1 scaling (transformers' `rope_type` `llama3`): frequencies of wavelengths above
    `original_max_positions / low_freq_factor` are divided by `factor`, those of wavelengths below
    `original_max_positions / high_freq_factor` stay, and those between are interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def scaled(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """The scaled frequencies, from plain `frequencies [H/2]` of base `theta`."""
        wavelength = 2 * math.pi / frequencies
        long, short = (
            self.original_max_positions / factor for factor in (self.low_freq_factor, self.high_freq_factor)
        )
        blend = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        middle = (1 - blend) * frequencies / self.factor + blend * frequencies
        slow = jnp.where(wavelength > long, frequencies / self.factor, frequencies)
        return jnp.where((wavelength <= long) & (wavelength >= short), middle, slow)

    @property
    def amplitude(self) -> float:
        """Multiplies rotated queries and keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al. 2023): channels with fewer than `beta_slow` full rotations in the original context
    are interpolated, those with more than `beta_fast` stay, and those between blend."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    """The amplitude; None for 0.1 · ln(factor) + 1."""
    truncate: bool = True
    """Whether the ends of the blend are rounded to whole channels."""

    def scaled(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """The scaled frequencies, from plain `frequencies [H/2]` of base `theta`."""
        count = len(frequencies)

        def channel(turns: float) -> float:
            """The channel with so many full rotations in the original context."""
            return count * math.log(self.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)

        first, last = channel(self.beta_fast), channel(self.beta_slow)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * count - 1)
        # A blend of no width is a step.
        width = (last - first) or 0.001
        interpolated = jnp.clip((jnp.arange(count, dtype=jnp.float32) - first) / width, 0, 1)
        return frequencies / self.factor * interpolated + frequencies * (1 - interpolated)

    @property
    def amplitude(self) -> float:
        """Multiplies rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class DynamicScaling:
    """Dynamic NTK scaling: it changes nothing in a context of up to the model's positions. Beyond that,
    `factor` scales the base, which is not computed here."""

    factor: float

    def scaled(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """The frequencies as they are."""
        return frequencies

    @property
    def amplitude(self) -> float:
        """Multiplies rotated queries and keys."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LongRopeScaling:
    """LongRoPE (Ding et al. 2024): each frequency is divided by its own factor, a `short` one in a context of
    up to `original_max_positions` tokens and a `long` one beyond. Only the former is computed here."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_positions: int
    factor: float
    """How many times longer the long context is."""
    attention_factor: float | None = None
    """The amplitude; None for √(1 + ln(factor) / ln(original_max_positions))."""

    def scaled(self, frequencies: jax.Array, theta: float) -> jax.Array:
        """The scaled frequencies, from plain `frequencies [H/2]` of base `theta`."""
        return frequencies / jnp.array(self.short)

    @property
    def amplitude(self) -> float:
        """Multiplies rotated queries and keys."""
        if self.attention_factor is not None:
            return self.attention_factor
        longer = max(self.factor, 1.0)
        return math.sqrt(1 + math.log(longer) / math.log(self.original_max_positions))


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling | DynamicScaling | LongRopeScaling
"""Ways to stretch rotary embeddings over a longer context than they were trained on."""


@dataclasses.dataclass(frozen=True)
class Positions:
    """How the attention of a layer treats positions."""

    theta: float | None = 10000.0
    """Base of the rotary frequencies; None for a layer without rotary embeddings."""
    scaling: RopeScaling | None = None
    window: int | None = None
    """A token attends to at most this many positions, its own and those just before it; None for all."""


def frequencies(positions: Positions, head_dim: int, rotated: int) -> jax.Array:
    """Rotary frequencies `[H/2]` of the channels of a head, of which the first `rotated` / 2 pairs are
    rotated.

    A frequency of zero leaves a pair as it is.
    """
    if positions.theta is None:
        return jnp.zeros(head_dim // 2)
    plain = 1.0 / positions.theta ** (jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    scaled = plain if positions.scaling is None else positions.scaling.scaled(plain, positions.theta)
    return jnp.pad(scaled, (0, (head_dim - rotated) // 2))


def amplitudes(positions: Positions, head_dim: int, rotated: int) -> jax.Array:
    """What queries and keys of a layer are multiplied by, `[H/2]`: not 1 only in pairs that are rotated."""
    value = 1.0 if positions.scaling is None else positions.scaling.amplitude
    return jnp.pad(jnp.full(rotated // 2, value), (0, (head_dim - rotated) // 2), constant_values=1.0)


def paired_channels(head_dim: int, rotated: int, neighbours: bool = False) -> tuple[int, ...]:
    """The order of a head's channels in which channel i and channel i + H/2 are rotated as a pair.

    In checkpoints, only the first `rotated` channels are rotated: channel i with channel i + rotated/2, or,
    as `neighbours`, channel 2i with channel 2i + 1. The others fill up both halves.
    """
    turning = list(range(rotated))
    firsts, seconds = turning[: rotated // 2], turning[rotated // 2 :]
    if neighbours:
        firsts, seconds = turning[::2], turning[1::2]
    middle = rotated + (head_dim - rotated) // 2
    return (*firsts, *range(rotated, middle), *seconds, *range(middle, head_dim))
