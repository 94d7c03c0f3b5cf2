"""Shapes of large models, and TPUs that need not exist on this machine."""

import dataclasses

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.runtime import devices
from tyr_jax.settings import PRESETS, Preset, Settings

MODELS = {
    "llama-2-7b": ModelConfig("llama", 32000, 4096, 128, (LayerShape(32, 32, 11008),) * 32),
    "llama-3.1-8b": ModelConfig("llama", 128256, 4096, 128, (LayerShape(32, 8, 14336),) * 32),
    "llama-3.1-70b": ModelConfig("llama", 128256, 8192, 128, (LayerShape(64, 8, 28672),) * 80),
}


@dataclasses.dataclass(frozen=True)
class OnTpus:
    """A large model on TPUs, to compile for."""

    topology: str = "v5e:2x4"
    """The TPUs, by the compiler's name for them."""
    devices: int | None = None
    """Number of TPUs to use; by default, all."""
    model: str = "llama-3.1-8b"
    """Shapes of the model."""
    preset: Preset = "standard"
    """Preset for the sizes of the text and the schedule of the search."""
    sparsity: float = 0.5
    """Target."""

    def config(self) -> ModelConfig:
        """The model's configuration."""
        return MODELS[self.model]

    def settings(self) -> Settings:
        """Settings of the run."""
        return dataclasses.replace(PRESETS[self.preset], sparsity=(self.sparsity,))

    def mesh(self) -> Mesh:
        """The TPUs of the topology, or the first of them."""
        every = topologies.get_topology_desc(platform="tpu", topology_name=self.topology).devices
        return Mesh(np.array(every[: self.devices]), (devices.AXIS,))
