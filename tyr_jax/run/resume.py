"""What a run saves while it lasts, so that the same command continues where it was interrupted.

It saves every group of sequences that the model writes itself, every finished block of a supernet, every
generation of a search, every round, and the dense model's predictions. All random draws are
functions of the seed and of how far the work has got. So an interrupted run ends like an uninterrupted one:
bit for bit on the same number of devices, and up to rounding on another number, because each device's part
then has another size. (Reconstruction then trains on other mini-batches, because each device draws from its
own tokens.)

Each part of the work has its part of the store, which is cleared once the part's result is saved.
"""

import json
import shutil
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.formatting import in_words
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.fold import Fold, dealt_anew
from tyr_jax.pruning.reconstruction import Learnt
from tyr_jax.pruning.supernet import Layer, Supernet, of_layer, with_layer
from tyr_jax.runtime import devices, hosts
from tyr_jax.runtime.offload import Scratch, Stack
from tyr_jax.workspace.facts import Checksums, Inputs, ResidualFacts
from tyr_jax.workspace.pytrees import SAVED, checksum
from tyr_jax.workspace.store import Saved, Store

KEPT = "done before the interruption"
"""Shown by the progress display for work that need not be done again."""


def check_space(store: Store, needed: int) -> None:
    """Refuse to begin a run that the disk has no room for.

    Raises:
        UserError: free space and what is saved already come to less than `needed` bytes.
    """
    if store.directory is None:
        return
    store.directory.mkdir(parents=True, exist_ok=True)
    kept = sum(path.stat().st_size for path in store.directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(store.directory).free
    if needed > kept + free:
        raise UserError(
            f"the disk of {store.directory} has {in_words(free)} left, but this run may need "
            f"{in_words(needed - kept)} more; choose another --output, or fewer --levels or "
            "--calibration-tokens"
        )


def begun_with(store: Store) -> Inputs | None:
    """What a run recorded when it began; None if it has not begun."""
    saved = store.load("inputs", Inputs)
    return None if saved is None else saved.facts


def check_models(store: Store, models: Mapping[str, LoadedModel]) -> None:
    """Refuse to continue if a model differs from what the run began with, or between hosts. This comes before
    anything that a model makes is saved, such as its own text.

    Args:
        store: where the run keeps its work.
        models: the models, by what they are called.

    Raises:
        UserError: they have changed, or hosts differ in them or in their number of devices.
    """
    now = {what: mark for name, model in models.items() for what, mark in marks_of(name, model).items()}
    for what, number in {**now, "number of devices": devices.count()}.items():
        hosts.check_agreed(what, number)
    begun = store.load("models", Checksums)
    if begun is None:
        store.save("models", facts=Checksums(checksums=now))
    else:
        check_unchanged(begun.facts, now)


def marks_of(name: str, model: LoadedModel) -> dict[str, int]:
    """Checksums of all that a result takes from a model, by what it is: weights, configuration, tokenizer."""

    def mark(*values: Any) -> int:
        return zlib.crc32(json.dumps(values, sort_keys=True, default=str).encode())

    def read(leaf: Any) -> Any:
        return checksums(leaf) if isinstance(leaf, Stack) else leaf

    tokenizer = model.tokenizer
    told = tokenizer.backend_tokenizer.to_str(), tokenizer.chat_template, tokenizer.special_tokens_map
    return {
        name: checksum(jax.tree.map(read, model.params)),
        f"configuration of the {name}": mark(model.config, model.hf_config, model.generation_config),
        f"tokenizer of the {name}": mark(*told),
    }


def check_inputs(
    store: Store,
    text: Any,
    tell: Callable[[str], None],
    step_rows: int | None = None,
    others: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to continue if a text differs from what the run began with, or between hosts.

    Args:
        store: where the run keeps its work.
        text: the text, a pytree of arrays.
        tell: called with a sentence if the run continues on another number of devices.
        step_rows: in training, the rows of a step, for `begun_with`.
        others: further pytrees of arrays that must not differ, by name.

    Raises:
        UserError: they have changed, or hosts differ in them.
    """
    now = {name: checksum(arrays) for name, arrays in {"text": text, **(others or {})}.items()}
    for what, number in now.items():
        hosts.check_agreed(what, number)
    begun = begun_with(store)
    if begun is None:
        store.save("inputs", facts=Inputs(checksums=now, devices=devices.count(), step_rows=step_rows))
        return
    if begun.devices != devices.count():
        tell(
            f"begun on {begun.devices} devices, continuing on {devices.count()}: results are equal up to "
            "rounding"
        )
    check_unchanged(begun, now)


def check_unchanged(begun: Checksums, now: Mapping[str, int]) -> None:
    """Refuse to continue if a checksum differs from the one of the same name that a run began with.

    Raises:
        UserError: one does.
    """
    changed = [name for name, value in now.items() if begun.checksums.get(name) != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the interrupted run changed since it began; bring back what "
            "it began with, or start over with --restart"
        )


def checksums(leaf: Any) -> np.ndarray:
    """Of an array, or of every layer of a stack on disk, of which one is in memory at a time."""
    layers = (leaf[layer] for layer in range(len(leaf))) if isinstance(leaf, Stack) else [leaf]
    return np.array([checksum(each) for each in layers], np.int64)


def save_block(store: Store, depth: int, fold: Fold) -> None:
    """Save the block that a fold over `depth` blocks has just finished, and the residuals after it in place
    of the previous ones. Residuals after the last block are not needed."""
    layer, learnt = fold.done - 1, fold.learnt[-1] if fold.learnt else None
    store.save(f"block-{layer}", (of_layer(fold.supernet, layer), learnt))
    streams = [fold.residual, *([fold.dense] if fold.dense else [])] if fold.done < depth else None
    facts = ResidualFacts(real=fold.real, devices=devices.count())
    store.save_step("residual", fold.done, streams, facts)


def load_fold(
    store: Store,
    make_empty: Callable[[], Supernet],
    scratch: Scratch | None,
    config: ModelConfig | None = None,
) -> Fold | None:
    """The fold as far as it is saved, its supernet filled in from `make_empty()`; None if no block is saved.
    With `scratch`, residuals are on disk. Where FFNs of a model of `config` learn, it has what each has
    learnt. If the number of devices has changed, the residuals are batched again."""
    begun = Saved(SAVED, ResidualFacts(real=[], devices=devices.count()))
    done, (streams, facts) = store.last_step("residual", begun)
    if not done:
        return None

    def placed(tree: Any) -> Any:
        return scratch.keep(tree) if scratch else jax.tree.map(jnp.asarray, tree)

    supernet, learnt = make_empty(), []
    for layer in range(done):
        block = store.load(f"block-{layer}")
        if block is None:
            return None
        with store.reading(f"block-{layer}"):
            sites, found = block.tree
            supernet = with_layer(supernet, layer, Layer(**sites))
            if config and found:
                tensors = devices.spread(placed(found["tensors"]), config.hidden_axes)
                found = Learnt(**found | {"tensors": tensors})
            learnt.append(found)
    with store.reading(f"residual-{done}"):
        streams, real = streams or [], facts.real
        if streams and facts.devices != devices.count():
            anew = [dealt_anew(stream, real) for stream in streams]
            streams, real = [stream for stream, _ in anew], anew[0][1]
        pruned, dense = (*(devices.place(placed(stream)) for stream in streams), None, None)[:2]
    return Fold(supernet, done, pruned or [], real, dense, tuple(learnt) if config else ())


def save_metrics(store: Store, metrics: Any) -> None:
    """Save the metrics `[L, S, D, D]` of the sites' outputs, layer by layer."""
    for layer in range(len(metrics)):
        store.save(f"metric-{layer}", metrics[layer])


def load_metrics(store: Store, depth: int, scratch: Scratch | None) -> Any:
    """What `save_metrics` saved of a model of `depth` layers; None unless all layers are saved. With
    `scratch`, it is on disk."""
    layers = []
    for layer in range(depth):
        saved = store.load(f"metric-{layer}")
        if saved is None:
            return None
        layers.append(scratch.keep(saved.tree) if scratch else saved.tree)
    return layers if scratch else devices.place(jnp.stack(layers), 3)
