"""How each layer treats positions, in a `config.json`: sliding windows, and layers without rotary embeddings.

`layer_types` lists which layers attend to a window only, `no_rope_layers` which have rotary embeddings.
"""

import math
from collections.abc import Mapping
from typing import Any

from tyr_jax.io.config_values import Json, flag, integer, number, unsupported
from tyr_jax.io.hf_rope import Rotary, rope_from_hf, rope_to_hf
from tyr_jax.model.family import LOCAL_BASE, WINDOW, Family
from tyr_jax.model.rope import Positions
from tyr_jax.model.spec import ModelConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""What `layer_types` calls layers that attend to all positions, and to a window."""

USE, TYPES, NO_ROPE = "use_sliding_window", "layer_types", "no_rope_layers"
PATTERN, PARAMETERS = "sliding_window_pattern", "rope_parameters"


def positions_from_hf(
    values: Mapping[str, Any], family: Family, depth: int, rotary: Rotary, local: Rotary
) -> tuple[Positions, ...]:
    """How each of `depth` layers treats positions; one entry if all do alike.

    Args:
        values: the `config.json`, with the family's defaults filled in.
        family: the model's family.
        depth: number of layers.
        rotary: the rotary embeddings of the layers that have them.
        local: those of layers with a sliding window.

    Raises:
        UserError: a key has a value that is not supported, or contradicts another; names it.
    """
    turned = _rotary_layers(values, family, depth)
    window = _window(values, family)
    windowed = _windowed_layers(values, family, turned, window)
    layers = []
    for turns, windows in zip(turned, windowed, strict=True):
        own = local if windows else rotary
        turns = turns and (windows or window is None or family.global_rotary)
        theta, scaling = (own.theta, own.scaling) if turns else (None, None)
        layers.append(Positions(theta, scaling, window if windows else None))
    return tuple(layers) if len(set(layers)) > 1 else (layers[0],)


def _window(values: Mapping[str, Any], family: Family) -> int | None:
    """Size of the sliding window; None if the model has none."""
    if WINDOW not in family.defaults or (USE in family.defaults and not flag(values, USE)):
        return None
    return None if values[WINDOW] is None else integer(values, WINDOW)


def _windowed_layers(
    values: Mapping[str, Any], family: Family, turned: list[bool], window: int | None
) -> list[bool]:
    """Which layers have the window."""
    depth, types = len(turned), values.get(TYPES)
    first = 0
    if family.sliding == "from_max_window_layers" and window is not None:
        first = integer(values, "max_window_layers", least=0)
    by_pattern = family.sliding == "by_pattern" and window is not None and types is None
    pattern = integer(values, PATTERN) if by_pattern else depth + 1
    usual = [
        window is not None
        and layer >= first
        and (layer + 1) % pattern != 0
        and not (family.sliding == "without_rotary" and turned[layer])
        for layer in range(depth)
    ]
    if types is None:
        return usual
    listed = isinstance(types, list) and len(types) == depth and all(one in (FULL, SLIDING) for one in types)
    if window is None and listed and SLIDING in types:
        raise unsupported(TYPES, types, f"{FULL!r} in every layer, as the model has no {WINDOW}")
    if not listed:
        raise unsupported(TYPES, types, f"a list of {depth} times {FULL!r} or {SLIDING!r}")
    found = [one == SLIDING for one in types]
    if family.sliding == "all" and found != usual:
        raise unsupported(TYPES, types, f"{FULL if window is None else SLIDING!r} in every layer")
    return found


def _rotary_layers(values: Mapping[str, Any], family: Family, depth: int) -> list[bool]:
    """Which layers have rotary embeddings."""
    if NO_ROPE not in family.defaults:
        return [True] * depth
    flags = values[NO_ROPE]
    if flags is None:
        every = integer(values, "no_rope_layer_interval")
        return [(layer + 1) % every != 0 for layer in range(depth)]
    if not isinstance(flags, list) or len(flags) < depth or any(one not in (0, 1) for one in flags):
        raise unsupported(NO_ROPE, flags, f"a list of {depth} times 0 or 1")
    return [bool(one) for one in flags[:depth]]


def positions_to_hf(config: ModelConfig, family: Family) -> Json:
    """The keys of a `config.json` that say how layers treat positions, except for the rotary embeddings."""
    layers = config.positions if config.mixed else config.positions * config.depth
    window = next((layer.window for layer in layers if layer.window is not None), None)
    written: Json = {}
    if NO_ROPE in family.defaults:
        written[NO_ROPE] = [int(layer.theta is not None) for layer in layers]
    if USE in family.defaults:
        written[USE] = window is not None
    listed = family.sliding == "by_pattern"
    # Where every layer's type is written, the window of the original stays, even if no layer has it.
    stays = USE in family.defaults or (listed and family.global_rotary)
    if WINDOW in family.defaults and (window is not None or not stays):
        written[WINDOW] = window
    if not family.global_rotary and window is None and layers[0].theta is None:
        # A window that no layer has, which says that none has rotary embeddings.
        written[WINDOW] = config.max_positions
    if listed or (window is not None and family.sliding != "all"):
        written[TYPES] = [FULL if layer.window is None else SLIDING for layer in layers]
    return written


def rotary_by_type(values: Mapping[str, Any], family: Family) -> tuple[Rotary, Rotary]:
    """The rotary embeddings of layers that attend to all positions, and of those that attend to a window.

    Raises:
        UserError: they are not supported, or contradict each other; names the key.
    """
    usual = Rotary(family.rope[0], None, family.rope[1])
    if family.rope_given and not any(values.get(key) for key in (PARAMETERS, "rope_scaling")):
        raise unsupported(PARAMETERS, None, "an object with a `rope_type`")
    if not family.rope_by_type:
        rotary = rope_from_hf(values, usual)
        return rotary, rotary
    local = Rotary(number(values, LOCAL_BASE)) if LOCAL_BASE in family.defaults else usual
    nested = values.get(PARAMETERS)
    if not nested:
        return rope_from_hf(values, usual), local
    if not isinstance(nested, dict) or set(nested) != {FULL, SLIDING}:
        raise unsupported(PARAMETERS, nested, f"an object with {FULL!r} and {SLIDING!r}")
    limits = {"max_position_embeddings": values["max_position_embeddings"]}
    full, sliding = (
        rope_from_hf({PARAMETERS: nested[name]} | limits, default)
        for name, default in ((FULL, usual), (SLIDING, local))
    )
    if sliding.share != full.share:
        raise unsupported(f"{PARAMETERS}.{SLIDING}", nested[SLIDING], f"with the share of {FULL!r}")
    return full, sliding


def rotary_to_hf(config: ModelConfig, family: Family, base: Mapping[str, Any]) -> Json:
    """The keys of rotary embeddings in a `config.json`, in the style of `base`."""
    turning = [each for each in config.layer_types if each.theta is not None]
    share = 1.0 if config.rotated is None else config.rotated / config.head_dim
    if config.rotated is not None and int(config.head_dim * share) < config.rotated:
        share = math.nextafter(share, 1)

    def rotary(types: list[Positions], theta: float) -> Rotary:
        first = types[0] if types else Positions(theta)
        return Rotary(theta if first.theta is None else first.theta, first.scaling, share)

    if not family.rope_by_type:
        own = rotary(turning, family.rope[0])
        # In the older style, rotary embeddings without scaling are not mentioned.
        style = {PARAMETERS: True} if family.rope_given and own.scaling is None else base
        return rope_to_hf(own, style, family.rope[1])
    local = family.defaults.get(LOCAL_BASE, family.rope[0])
    full, sliding = (
        rotary([each for each in turning if (each.window is not None) == windows], theta)
        for windows, theta in ((False, family.rope[0]), (True, local))
    )
    if base.get(PARAMETERS) or sliding.scaling is not None or LOCAL_BASE not in family.defaults:
        new = {PARAMETERS: True}
        both = {FULL: full, SLIDING: sliding}
        return {PARAMETERS: {name: rope_to_hf(own, new)[PARAMETERS] for name, own in both.items()}}
    return rope_to_hf(full, base) | {LOCAL_BASE: sliding.theta}
