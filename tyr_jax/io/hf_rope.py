"""Rotary embeddings in a `config.json`: the newer `rope_parameters`, or `rope_theta` and `rope_scaling`."""

from collections.abc import Mapping
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.io.config_values import Json, integer, number, shown, unsupported
from tyr_jax.model.spec import ModelConfig, RopeScaling

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})

LLAMA3_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_TYPES = ("default", "llama3")


def rope_from_hf(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling) of a `config.json`.

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
                f"config keys '{key}' ({shown(value)}) and '{where}.{key}' ({shown(nested[key])}) contradict"
            )
    return _rope_values(nested, where + ".", config.get("max_position_embeddings"))


def _rope_values(rope: Json, where: str, max_positions: Any) -> tuple[float, RopeScaling | None]:
    kind, *others = [rope.pop(key) for key in ("rope_type", "type") if key in rope] or ["default"]
    if others not in ([], [kind]) or kind not in ROPE_TYPES:
        raise unsupported(where + "rope_type", kind, " or ".join(ROPE_TYPES))
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial not in (1.0, None):
        raise unsupported(where + "partial_rotary_factor", partial, "1.0")
    theta = rope.pop("rope_theta", None)
    theta = 10000.0 if theta is None else number({"rope_theta": theta}, "rope_theta", where)
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", max_positions)
    unknown = sorted(set(rope) - set(LLAMA3_KEYS if kind == "llama3" else ()))
    if unknown:
        raise UserError(
            f"config key '{where}{unknown[0]}' ({shown(rope[unknown[0]])}) is unknown for rope type '{kind}'"
        )
    if kind == "default":
        return theta, None
    factor, low, high = (number(rope, key, where) for key in LLAMA3_KEYS[:3])
    if high <= low:
        raise unsupported(where + "high_freq_factor", high, f"greater than low_freq_factor ({low})")
    return theta, RopeScaling(factor, low, high, integer(rope, LLAMA3_KEYS[3], where))


def scaling_to_hf(rope: RopeScaling) -> Json:
    """Llama-3 RoPE scaling as keys of a `config.json`."""
    sizes = (rope.factor, rope.low_freq_factor, rope.high_freq_factor, rope.original_max_positions)
    return {"rope_type": "llama3", **dict(zip(LLAMA3_KEYS, sizes, strict=True))}


def rope_to_hf(config: ModelConfig, base: Mapping[str, Any]) -> Json:
    """The RoPE keys of `config`, in the style of `base`, or else in the older one, which every tool reads."""
    scaling = scaling_to_hf(config.rope_scaling) if config.rope_scaling is not None else {}
    if base.get("rope_parameters"):
        return {"rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta, **scaling}}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}
