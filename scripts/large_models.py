"""Shapes of large models, and TPUs that need not be there."""

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.runtime import devices

MODELS = {
    "llama-2-7b": ModelConfig("llama", 32000, 4096, 128, (LayerShape(32, 32, 11008),) * 32),
    "llama-3.1-8b": ModelConfig("llama", 128256, 4096, 128, (LayerShape(32, 8, 14336),) * 32),
    "llama-3.1-70b": ModelConfig("llama", 128256, 8192, 128, (LayerShape(64, 8, 28672),) * 80),
}


def tpu_mesh(topology: str, count: int | None = None) -> Mesh:
    """The TPUs of a topology such as `v5e:2x4`, or the first `count` of them, for their compiler."""
    every = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(every[:count]), (devices.AXIS,))
