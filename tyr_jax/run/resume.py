"""What a run saves while it lasts, so that the same command continues where it was interrupted.

It saves every group of sequences that the model writes itself, every finished block of a supernet, every
descent step and generation of a search, every round, and the dense model's predictions. All random draws are
functions of the seed and of how far the work has got. So an interrupted run ends like an uninterrupted one:
bit for bit on the same number of devices, and up to rounding on another number, because each device's part
then has another size. (Reconstruction then trains on other mini-batches, because each device draws from its
own tokens.)

Each part of the work has its part of the store, which is cleared once the part's result is saved.
"""

import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.evaluation.quality import Quality
from tyr_jax.formatting import in_words
from tyr_jax.model.prediction import Prediction
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.fold import Fold, dealt_anew
from tyr_jax.pruning.reconstruction import Learnt
from tyr_jax.pruning.supernet import Layer, Supernet, of_layer, with_layer
from tyr_jax.runtime import devices, hosts
from tyr_jax.runtime.offload import Scratch, Stack
from tyr_jax.scoring.objective import TeacherBatch
from tyr_jax.space import LevelGrid
from tyr_jax.workspace import records
from tyr_jax.workspace.store import Store, checksum

KEPT = "done before the interruption"
"""Shown by the progress display for work that need not be done again."""

SAMPLES = 4096
"""Approximate number of elements of an array that are compared to tell whether it has changed."""


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


def begun_with(store: Store) -> dict[str, Any] | None:
    """What a run recorded when it began; None if it has not begun."""
    saved = store.load("inputs", records.INPUT_FACTS)
    return None if saved is None else saved.facts


def check_models(store: Store, models: Mapping[str, Params]) -> None:
    """Refuse to continue if a model differs from what the run began with, or between hosts. This comes before
    anything that a model makes is saved, such as its own text.

    Args:
        store: where the run keeps its work.
        models: the models, by what they are called.

    Raises:
        UserError: they have changed, or hosts differ in them or in their number of devices.
    """
    now = {name: checksum(jax.tree.map(sample, params)) for name, params in models.items()}
    for what, number in {**now, "number of devices": devices.count()}.items():
        hosts.check_agreed(what, number)
    begun = store.load("models", records.MODEL_FACTS)
    if begun is None:
        store.save("models", facts=now)
    else:
        check_unchanged(begun.facts, now)


def check_inputs(
    store: Store,
    text: Any,
    tell: Callable[[str], None],
    notes: Mapping[str, Any] | None = None,
    others: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to continue if a text differs from what the run began with, or between hosts.

    Args:
        store: where the run keeps its work.
        text: the text, a pytree of arrays.
        tell: called with a sentence if the run continues on another number of devices.
        notes: saved for `begun_with`.
        others: further pytrees of arrays that must not differ, by name.

    Raises:
        UserError: they have changed, or hosts differ in them.
    """
    now = {name: checksum(arrays) for name, arrays in {"text": text, **(others or {})}.items()}
    for what, number in now.items():
        hosts.check_agreed(what, number)
    begun = begun_with(store)
    if begun is None:
        store.save("inputs", facts={**now, "devices": devices.count(), **(notes or {})})
        return
    if begun["devices"] != devices.count():
        tell(
            f"begun on {begun['devices']} devices, continuing on {devices.count()}: results are equal up to "
            "rounding"
        )
    check_unchanged(begun, now)


def check_unchanged(begun: Mapping[str, Any], now: Mapping[str, int]) -> None:
    """Refuse to continue if a checksum differs from the one of the same name that a run began with.

    Raises:
        UserError: one does.
    """
    changed = [name for name, value in now.items() if begun[name] != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the interrupted run changed since it began; bring back what "
            "it began with, or start over with --restart"
        )


def sample(leaf: Any) -> np.ndarray:
    """Elements of an array, or of every layer of a stack on disk, that tell whether it has changed."""
    if isinstance(leaf, Stack):
        return np.stack([sample(leaf[layer]) for layer in range(len(leaf))])
    return devices.fetch(leaf.reshape(-1)[:: max(1, leaf.size // SAMPLES)])


def save_block(store: Store, depth: int, fold: Fold) -> None:
    """Save the block that a fold over `depth` blocks has just finished, and the residuals after it in place
    of the previous ones. Residuals after the last block are not needed."""
    layer = fold.done - 1
    store.save(f"sites-{layer}", vars(of_layer(fold.supernet, layer)))
    if fold.learnt and (learnt := fold.learnt[layer]):
        store.save(f"learnt-{layer}", learnt.tensors, {"before": learnt.before, "after": learnt.after})
    # The dense model's come after the pruned one's.
    residual = [*fold.residual, *(fold.dense or [])] if fold.done < depth else None
    save_residual(store, layer, residual, fold.real)


def save_residual(store: Store, layer: int, residual: list[Any] | None, real: list[int]) -> None:
    """Save the residuals after `layer`, of one stream or several, in place of the previous ones."""
    store.save_step("residual", layer, residual, {"real": real, "devices": devices.count()})


def load_residual(store: Store, scratch: Scratch | None) -> tuple[int, list[list[Any]], list[int]] | None:
    """(the layer, the streams, how many sequences of each batch are real) of the saved residuals; None if
    there are none. If the number of devices has changed, the sequences are batched again. With `scratch`, the
    streams are on disk."""
    last = store.last_step("residual", records.RESIDUAL_FACTS)
    if last is None:
        return None
    layer, residual = last
    arrays, real = residual.arrays or [], residual.facts["real"]
    streams = [arrays[first : first + len(real)] for first in range(0, len(arrays), max(1, len(real)))]
    if arrays and residual.facts["devices"] != devices.count():
        with store.reading(f"residual-{layer}"):
            anew = [dealt_anew(stream, real) for stream in streams]
            streams, real = [stream for stream, _ in anew], anew[0][1]

    def placed(stream: Any) -> Any:
        return scratch.keep(stream) if scratch else devices.place([jnp.asarray(x) for x in stream])

    return layer, [placed(stream) for stream in streams], real


def load_fold(
    store: Store,
    make_empty: Callable[[], Supernet],
    scratch: Scratch | None,
    config: ModelConfig | None = None,
) -> Fold | None:
    """The fold as far as it is saved, its supernet filled in from `make_empty()`; None if no block is saved.
    With `scratch`, residuals are on disk. Where FFNs of a model of `config` learn, it has what each has
    learnt."""
    kept = load_residual(store, scratch)
    if kept is None:
        return None
    layer, streams, real = kept
    supernet = make_empty()
    for index in range(layer + 1):
        saved = store.load(f"sites-{index}")
        if saved is None:
            return None
        with store.reading(f"sites-{index}"):
            supernet = with_layer(supernet, index, Layer(**saved.arrays))
    # After the last block, no stream is needed.
    pruned, dense = (*streams, None, None)[:2]
    learnt = [load_learnt(store, index, scratch) for index in range(layer + 1)] if config else []
    if config is not None:
        axes = config.hidden_axes
        learnt = [each and each._replace(tensors=devices.spread(each.tensors, axes)) for each in learnt]
    return Fold(supernet, layer + 1, pruned or [], real, dense, tuple(learnt))


def load_learnt(store: Store, layer: int, scratch: Scratch | None) -> Learnt | None:
    """What the FFN of a layer has learnt, on disk with `scratch`; None if it had nothing to learn."""
    saved = store.load(f"learnt-{layer}", records.LEARNT_FACTS)
    if saved is None:
        return None
    tensors = scratch.keep(saved.arrays) if scratch else jax.tree.map(jnp.asarray, saved.arrays)
    return Learnt(tensors, **saved.facts)


Answers = tuple[dict[str, Prediction], dict[str, Quality]]
"""The dense model's predictions on the evaluation texts, by name, and its quality there."""


def save_answers(store: Store, answers: Answers) -> None:
    """Save the dense model's predictions on the evaluation texts, and its quality there."""
    predictions, qualities = answers
    save_qualities(store, "dense", qualities, [prediction._asdict() for prediction in predictions.values()])


def load_answers(store: Store) -> Answers | None:
    """What `save_answers` saved; None if nothing is saved."""
    saved = store.load("dense", records.QUALITY_FACTS)
    if saved is None:
        return None
    qualities = qualities_of(saved.facts)
    with store.reading("dense"):
        predictions = [Prediction(**fields) for fields in saved.arrays]
        return dict(zip(qualities, predictions, strict=True)), qualities


def save_qualities(store: Store, name: str, qualities: Mapping[str, Quality], arrays: Any = None) -> None:
    """Save the quality of a model on every evaluation text, and `arrays` with it."""
    store.save(name, arrays, {text: quality.as_json() for text, quality in qualities.items()})


def load_qualities(store: Store, name: str) -> dict[str, Quality] | None:
    """Quality of a model on every evaluation text; None if it is not saved."""
    saved = store.load(name, records.QUALITY_FACTS)
    return saved and qualities_of(saved.facts)


def qualities_of(saved: Mapping[str, Any]) -> dict[str, Quality]:
    """Qualities by name of the text, from their saved form."""
    return {text: Quality.of(figures) for text, figures in saved.items()}


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
        layers.append(scratch.keep(saved.arrays) if scratch else saved.arrays)
    return layers if scratch else devices.place(jnp.stack(layers), 3)


def save_pool(store: Store, pool: TeacherBatch) -> None:
    """Save the search text with the dense model's predictions."""
    hidden = {"hidden": pool.hidden} if pool.hidden.size else {}
    store.save("pool", {"tokens": pool.tokens, "dense": pool.dense._asdict(), **hidden})


def load_pool(store: Store) -> TeacherBatch | None:
    """The search text with the dense model's predictions; None if they are not saved."""
    saved = store.load("pool")
    if saved is None:
        return None
    with store.reading("pool"):
        arrays = jax.tree.map(jnp.asarray, saved.arrays)
        dense = Prediction(**arrays["dense"])
        count, *rest = dense.hidden.shape
        none = jnp.zeros((count, 0, *rest), dense.hidden.dtype)
        return TeacherBatch(arrays["tokens"], dense, arrays.get("hidden", none))


def save_round(
    store: Store,
    kept: np.ndarray,
    grid: LevelGrid,
    rounds: list[dict[str, Any]],
    ranks: Mapping[str, np.ndarray],
) -> None:
    """Save where a search stands after its last round: units `[S, L]`, the supernet's levels, the records,
    and the ranks `[L, U]` of units that are settled, by kind."""
    levels = {"kept": grid.kept, "exists": grid.exists, "step": grid.step}
    arrays = {"kept": kept, "grid": levels} | ({"ranks": dict(ranks)} if ranks else {})
    store.save_step("round", len(rounds), arrays, {"rounds": rounds})


def load_round(
    store: Store,
) -> tuple[np.ndarray, LevelGrid, list[dict[str, Any]], dict[str, np.ndarray]] | None:
    """What `save_round` saved last; None before the first round."""
    last = store.last_step("round", records.ROUND_FACTS)
    if last is None:
        return None
    number, saved = last
    with store.reading(f"round-{number}"):
        found, grid = saved.arrays, LevelGrid(**saved.arrays["grid"])
        return found["kept"], grid, saved.facts["rounds"], found.get("ranks", {})


History = list[list[float | None]]
"""The objectives of a descent, step by step; None for each that was not finite."""


def save_descent(store: Store, step: int, levels: np.ndarray, history: History) -> None:
    """Save where a descent stands after `step` steps: `levels [S, L]`, and the objectives so far."""
    store.save_step("descent", step, levels, {"history": history})


def load_descent(store: Store) -> tuple[int, np.ndarray, History] | None:
    """(steps done, levels, objectives) that `save_descent` saved last; None before the first step."""
    last = store.last_step("descent", records.DESCENT_FACTS)
    if last is None:
        return None
    step, saved = last
    return step, saved.arrays, saved.facts["history"]


def save_search(store: Store, step: int, state: Any, history: list[dict[str, Any]], spent: int) -> None:
    """Save where a search stands after `step` steps: its state (a pytree of arrays), the records so far, and
    the candidate-tokens spent."""
    leaves = [np.asarray(plain_key(leaf)) for leaf in jax.tree.leaves(state)]
    arrays = {str(index): leaf for index, leaf in enumerate(leaves) if leaf.size}
    empty = {
        str(index): {"shape": leaf.shape, "dtype": leaf.dtype.name}
        for index, leaf in enumerate(leaves)
        if not leaf.size
    }
    store.save_step("search", step, arrays, {"history": history, "spent": spent, "empty": empty})


def load_search(store: Store, begun: Any) -> tuple[int, Any, list[dict[str, Any]], int]:
    """(steps done, state, records, candidate-tokens spent) that `save_search` saved last; if nothing is
    saved, those of a search that begins with the state `begun`."""
    last = store.last_step("search", records.SEARCH_FACTS)
    if last is None:
        return 0, begun, [], 0
    step, saved = last
    leaves, structure = jax.tree.flatten(begun)
    with store.reading(f"search-{step}"):
        empty = {index: np.zeros(**what) for index, what in saved.facts["empty"].items()}
        kept = saved.arrays | empty
        found = [like_key(kept[str(index)], leaf) for index, leaf in enumerate(leaves)]
        state = jax.tree.unflatten(structure, found)
    return step, state, saved.facts["history"], saved.facts["spent"]


def is_key(leaf: Any) -> bool:
    """Whether a leaf of a state is a typed PRNG key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def plain_key(leaf: Any) -> Any:
    """A leaf of a state; a typed PRNG key as its integers."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def like_key(array: np.ndarray, leaf: Any) -> Any:
    """`array` converted to what `leaf` is: a typed PRNG key, a JAX array, or a NumPy array."""
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array) if isinstance(leaf, jax.Array) else array
