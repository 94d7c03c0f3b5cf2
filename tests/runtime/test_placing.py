"""Where arrays lie on several devices."""

import jax
import jax.numpy as jnp
import pytest
from tiny import make_tiny_config

from tyr_jax.model.spec import LayerShape
from tyr_jax.model.tensors import build_params
from tyr_jax.runtime import devices


def test_weights_are_divided_by_the_letter_of_their_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where other axes are as long as the hidden one: here layers, heads, neurons and the vocabulary."""
    config = make_tiny_config(
        layers=8, shape=LayerShape(8, 4, 8), hidden=8, vocab=8, head_dim=8, qkv_bias=True, qk_norm=True
    )
    mesh = jax.sharding.AbstractMesh((2,), (devices.AXIS,))
    monkeypatch.setattr(devices, "count", lambda: 2)
    monkeypatch.setattr(jax.sharding, "get_mesh", lambda: mesh)
    params = jax.eval_shape(lambda: build_params(config, lambda spec: jnp.zeros(spec.shape)))
    placed = devices.spread(params, config.hidden_axes)
    found = {name: tuple(array.sharding.spec) for name, array in placed["blocks"].items()}
    whole, own = (), devices.AXIS
    assert found == {
        **dict.fromkeys(("attn_norm", "mlp_norm"), (None, own)),
        **dict.fromkeys(("q", "k", "v", "gate", "up"), (None, own)),
        "o": (None, None, None, own),
        "down": (None, None, own),
        **dict.fromkeys(("q_bias", "k_bias", "v_bias", "q_norm", "k_norm"), whole),
    }
    assert tuple(placed["embed"].sharding.spec) == (None, own)
