"""Models as users give them: by name, already loaded, or as the result of a job."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tyr_jax.data import parse_source
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel, load_config, load_model
from tyr_jax.model.spec import ModelConfig
from tyr_jax.results import ModelResult
from tyr_jax.runtime import devices, offload
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.records import Recovery, Summary
from tyr_jax.workspace.schema import read


@dataclasses.dataclass(frozen=True)
class NamedModel:
    """A model's name, and the keys of its `config.json` that do not change what it computes."""

    name: str
    ignore_keys: tuple[str, ...] = ()


AnyModel = str | os.PathLike[str] | NamedModel | LoadedModel | ModelResult
"""A directory, a .gguf file, a hub id or `builtin`, by itself or with keys to ignore; a loaded model; or the
result of a job."""


class GivenModel(NamedTuple):
    """A model that a user gave."""

    given: AnyModel

    @property
    def name(self) -> str:
        """Its name.

        Raises:
            UserError: what was given is no model.
        """
        if isinstance(self.given, LoadedModel):
            return self.given.source
        if isinstance(self.given, ModelResult | NamedModel):
            return os.path.expanduser(self.given.name)
        if not isinstance(self.given, str | os.PathLike):
            raise UserError(
                f"a model is a name, a path, what load_model returns or a result, not {self.given!r:.100}"
            )
        return os.path.expanduser(str(os.fspath(self.given)))

    @property
    def ignore_keys(self) -> tuple[str, ...]:
        """Keys of its `config.json` to ignore when it is read."""
        return self.given.ignore_keys if isinstance(self.given, NamedModel) else ()

    @property
    def argument(self) -> str:
        """Its name as a command-line argument."""
        return self.given.argument if isinstance(self.given, ModelResult) else self.name

    @property
    def made_here(self) -> bool:
        """Whether this process made it, so that its records can be trusted."""
        return isinstance(self.given, ModelResult)

    def loaded(self) -> LoadedModel | None:
        """The loaded model; None if it is only named."""
        if isinstance(self.given, LoadedModel):
            return self.given
        return self.given.model if isinstance(self.given, ModelResult) else None

    def records(self) -> tuple[Summary | None, Recovery | None]:
        """(summary of its pruning, record of its training), each None if there is none.

        Raises:
            UserError: there is one, but it cannot be read.
        """
        if isinstance(self.given, ModelResult):
            return self.given.records()
        return read(Summary, self.name), read(Recovery, self.name)

    def config(self) -> tuple[ModelConfig, np.dtype]:
        """Its configuration and the dtype of its stored weights. If it is only named, nothing else is read.

        Raises:
            UserError: there is no such model, or its configuration is not understood.
        """
        loaded = self.loaded()
        if loaded is None:
            return load_config(self.name, self.ignore_keys)
        return loaded.config, loaded.stored_dtype


def read_paths(models: Iterable[GivenModel], texts: Iterable[str]) -> list[Path]:
    """Files and directories that a job reads: its models and its sources of text."""
    sources = map(parse_source, texts)
    names = [model.name for model in models] + [each.name for each in sources if each.kind == "file"]
    # Unlike `Path.exists`, this accepts names that are not valid paths.
    return [Path(name) for name in names if os.path.exists(name)]


def load(model: GivenModel, dtype: DTypeLike = jnp.float32, *, on_disk: bool = False) -> LoadedModel:
    """Load the model, with weights in `dtype` and sharded over the devices in use. With `on_disk`, the
    weights of its blocks stay on disk.

    Raises:
        UserError: there is no such model, anything about it is not understood, or it is loaded already, but
            not in the form that is needed.
    """
    given = model.loaded()
    if given is None:
        loaded = load_model(model.name, dtype, offload=on_disk, ignore_keys=model.ignore_keys)
    else:
        loaded = _in_dtype(given, jnp.dtype(dtype), on_disk)
    return dataclasses.replace(loaded, params=devices.spread(loaded.params, loaded.config.hidden_axes))


def _in_dtype(model: LoadedModel, dtype: jnp.dtype, on_disk: bool) -> LoadedModel:
    """A loaded model with its weights in `dtype`: in memory or, with `on_disk`, still on disk."""
    kept_on_disk = offload.on_disk(model.params)
    same = model.params["embed"].dtype == dtype
    if on_disk and not (kept_on_disk and same):
        raise UserError(
            f"--offload reads weights from disk, but {model.source} is loaded already; give its directory or "
            "hub id instead"
        )
    if same and on_disk == kept_on_disk:
        return model
    params = jax.tree.map(lambda array: jnp.asarray(array[:] if kept_on_disk else array, dtype), model.params)
    return dataclasses.replace(model, params=params)


def load_shown(
    model: GivenModel, progress: Progress, dtype: DTypeLike = jnp.float32, *, on_disk: bool = False
) -> LoadedModel:
    """`load`, shown as a stage of the job unless the model is loaded already."""
    if model.loaded() is not None:
        return load(model, dtype, on_disk=on_disk)
    with progress.stage("load model", 1, "models") as stage:
        loaded = load(model, dtype, on_disk=on_disk)
        stage.advance()
    return loaded
