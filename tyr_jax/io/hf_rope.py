"""Rotary embeddings in a `config.json`: the newer `rope_parameters`, or `rope_theta` and `rope_scaling`."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import Json, flag, integer, number, shown, unsupported
from tyr_jax.model.rope import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
)

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})

ORIGINAL = "original_max_position_embeddings"

SCALING_KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset({"factor", ORIGINAL, "beta_fast", "beta_slow", "attention_factor", "truncate"}),
    "longrope": frozenset({"short_factor", "long_factor", ORIGINAL, "factor", "attention_factor"}),
}
"""Keys of each RoPE type that can be read."""


OLD_NAMES = {"su": "longrope"}
"""RoPE types by the names that they had."""


class Rotary(NamedTuple):
    """Rotary embeddings: base and scaling of frequencies, and the share of a head's channels that are
    rotated."""

    theta: float
    scaling: RopeScaling | None = None
    share: float = 1.0


USUAL = Rotary(10000.0)
"""Rotary embeddings of most families when `config.json` does not describe them."""


def rope_from_hf(config: Mapping[str, Any], default: Rotary = USUAL) -> Rotary:
    """The rotary embeddings of a `config.json`; `default` has base and share where it does not give them.

    Raises:
        UserError: a RoPE type or key is not supported, or keys contradict each other; names the key.
    """
    where, older = "rope_parameters", "rope_scaling"
    if config.get(where) and config.get(older):
        raise UserError(f"config keys '{where}' and '{older}' are both given: keep one")
    if not config.get(where):
        where = older
    nested = config.get(where) or {}
    if not isinstance(nested, dict):
        raise unsupported(where, nested, "an object")
    nested = dict(nested)
    outer = {key: config.get(key) for key in ("rope_theta", "partial_rotary_factor")}
    for key, value in outer.items():
        if value is not None and nested.setdefault(key, value) != value:
            raise UserError(
                f"config keys '{key}' ({shown(value)}) and '{where}.{key}' ({shown(nested[key])}) "
                "contradict each other: keep the right one"
            )
    return _rotary(nested, where + ".", config, default)


def _rotary(rope: Json, where: str, config: Mapping[str, Any], default: Rotary) -> Rotary:
    max_positions, original = config.get("max_position_embeddings"), config.get(ORIGINAL)
    kind, *others = [rope.pop(key) for key in ("rope_type", "type") if key in rope] or ["default"]
    kind = OLD_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if others not in ([], [kind]) or not isinstance(kind, str) or kind not in SCALING_KEYS:
        raise unsupported(where + "rope_type", kind, " or ".join(SCALING_KEYS))
    given = {key: rope.pop(key, None) for key in ("rope_theta", "partial_rotary_factor")}
    theta, share = (
        fallback if given[key] is None else number(given, key, where)
        for key, fallback in (("rope_theta", default.theta), ("partial_rotary_factor", default.share))
    )
    if theta < 1:
        raise unsupported(where + "rope_theta", theta, "at least 1")
    if share > 1:
        raise unsupported(where + "partial_rotary_factor", share, "at most 1")
    unknown = sorted(set(rope) - SCALING_KEYS[kind])
    if unknown:
        raise UserError(
            f"config key '{where}{unknown[0]}' ({shown(rope[unknown[0]])}) is unknown for rope type '{kind}'"
        )
    return Rotary(theta, _scaling(kind, rope, max_positions, original, where), share)


def _scaling(kind: str, rope: Json, max_positions: Any, original: Any, where: str) -> RopeScaling | None:
    """The scaling that the keys of a RoPE type describe. `max_positions` are the model's, `original` those
    that it was first trained on, if they are given elsewhere.

    Raises:
        UserError: a key is missing or has a value that is not supported; names it.
    """
    if kind == "default":
        return None
    if kind == "longrope":
        return _longrope({ORIGINAL: original} | rope, max_positions, where)
    factor = number(rope, "factor", where)
    if kind in ("linear", "dynamic"):
        return LinearScaling(factor) if kind == "linear" else DynamicScaling(factor)
    original = integer({ORIGINAL: max_positions} | rope, ORIGINAL, where)
    if kind == "llama3":
        low, high = (number(rope, key, where) for key in ("low_freq_factor", "high_freq_factor"))
        if high <= low:
            raise unsupported(where + "high_freq_factor", high, f"greater than low_freq_factor ({low})")
        return Llama3Scaling(factor, low, high, original)
    fast, slow = (
        number(rope, key, where) if rope.get(key) is not None else usual
        for key, usual in (("beta_fast", 32.0), ("beta_slow", 1.0))
    )
    amplitude = None if rope.get("attention_factor") is None else number(rope, "attention_factor", where)
    return YarnScaling(factor, original, fast, slow, amplitude, flag({"truncate": True} | rope, "truncate"))


def _factors(rope: Json, key: str, where: str) -> tuple[float, ...]:
    """A list of positive numbers.

    Raises:
        UserError: it is none; names the key.
    """
    factors = rope.get(key)
    if not isinstance(factors, list) or not factors:
        raise unsupported(where + key, factors, "a list of positive numbers")
    return tuple(number({key: factor}, key, where) for factor in factors)


def _longrope(rope: Json, max_positions: Any, where: str) -> LongRopeScaling:
    """LongRoPE scaling.

    Raises:
        UserError: a key is missing or has a value that is not supported; names it.
    """
    short, long = (_factors(rope, key, where) for key in ("short_factor", "long_factor"))
    original = integer(rope, ORIGINAL, where, least=2)
    amplitude = None if rope.get("attention_factor") is None else number(rope, "attention_factor", where)
    longest = integer({"max_position_embeddings": max_positions}, "max_position_embeddings")
    factor = number(rope, "factor", where) if rope.get("factor") is not None else longest / original
    return LongRopeScaling(short, long, original, factor, amplitude)


def scaling_to_hf(scaling: RopeScaling | None) -> Json:
    """RoPE scaling as keys of a `config.json`; empty if there is none."""
    if scaling is None:
        return {}
    if isinstance(scaling, LinearScaling | DynamicScaling):
        kind = "linear" if isinstance(scaling, LinearScaling) else "dynamic"
        return {"rope_type": kind, "factor": scaling.factor}
    written: Json = {"factor": scaling.factor, ORIGINAL: scaling.original_max_positions}
    if isinstance(scaling, Llama3Scaling):
        ends = {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
        return {"rope_type": "llama3"} | written | ends
    if isinstance(scaling, LongRopeScaling):
        lists = {"short_factor": [*scaling.short], "long_factor": [*scaling.long]}
        amplitude = {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
        return {"rope_type": "longrope"} | written | lists | amplitude
    written |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
    if scaling.attention_factor is not None:
        written["attention_factor"] = scaling.attention_factor
    return {"rope_type": "yarn"} | written | ({} if scaling.truncate else {"truncate": False})


def rope_to_hf(rotary: Rotary, base: Mapping[str, Any], default_share: float = 1.0) -> Json:
    """The RoPE keys of a `config.json`, in the style of `base`, or else in the older one, which every tool
    reads. The share of channels that are rotated is left out only if it and the family's `default_share` are
    1."""
    scaling = scaling_to_hf(rotary.scaling)
    plain = rotary.share == default_share == 1
    share = {} if plain else {"partial_rotary_factor": rotary.share}
    if base.get("rope_parameters"):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": rotary.theta, **scaling, **share}}
    return {"rope_theta": rotary.theta, "rope_scaling": scaling or None, **share}
