"""What of a run is kept while it lasts, so that the same command goes on where it was interrupted.

Kept are every finished block of a supernet, every descent step and generation of a search, every round, and
the dense model's answers. All random draws are functions of the seed and of where the work stands, so that a
run that was interrupted ends as one that was not: bit for bit on as many devices as it began with, and equal
to rounding on another number of them, as slices come back in other sizes.

A part of the work has a part of the store, and forgets it once its result is kept.
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
from tyr_jax.model.spec import Params
from tyr_jax.pruning.fold import Fold, dealt_anew
from tyr_jax.pruning.reconstruction import Learnt
from tyr_jax.pruning.supernet import Supernet, of_layer, with_layer
from tyr_jax.runtime import devices, hosts
from tyr_jax.runtime.offload import Scratch, Stack
from tyr_jax.scoring.objective import TeacherBatch
from tyr_jax.space import LevelGrid
from tyr_jax.workspace import records
from tyr_jax.workspace.store import Store, checksum

KEPT = "done before the interruption"
"""What the progress display says of work that need not be done again."""

SAMPLES = 4096
"""Elements of an array that tell whether it is the same one."""


def check_space(store: Store, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Raises:
        UserError: it has fewer than `needed` bytes left, besides what is kept already.
    """
    if store.directory is None:
        return
    store.directory.mkdir(parents=True, exist_ok=True)
    kept = sum(path.stat().st_size for path in store.directory.rglob("*") if path.is_file())
    free = shutil.disk_usage(store.directory).free
    if needed > kept + free:
        raise UserError(
            f"the disk of {store.directory} has {in_words(free)} left, but this run may take "
            f"{in_words(needed - kept)} while it lasts; choose another --output, or fewer --levels or "
            "--calibration-tokens"
        )


def begun_with(store: Store) -> dict[str, Any] | None:
    """What a run noted when it began, or None if it has not begun."""
    saved = store.load("inputs", records.INPUT_FACTS)
    return None if saved is None else saved.facts


def check_inputs(
    store: Store,
    params: Params,
    text: Any,
    tell: Callable[[str], None],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Refuse to go on with another model or `text` (a pytree of arrays) than the run began with, or than
    other hosts have; `tell` if it continues on another number of devices. `notes` are kept for `begun_with`.

    Raises:
        UserError: they have changed, or differ between hosts.
    """
    now = {"model": checksum(jax.tree.map(sample, params)), "text": checksum(text)}
    for what, number in {**now, "number of devices": devices.count()}.items():
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
    changed = [name for name, value in now.items() if begun[name] != value]
    if changed:
        raise UserError(
            f"the {' and the '.join(changed)} of the interrupted run changed since it began; bring back what "
            "it began with, or start over with --restart"
        )


def sample(leaf: Any) -> np.ndarray:
    """Elements of an array, or of every layer of a stack on disk, that tell whether it is the same one."""
    if isinstance(leaf, Stack):
        return np.stack([sample(leaf[layer]) for layer in range(len(leaf))])
    return devices.fetch(leaf.reshape(-1)[:: max(1, leaf.size // SAMPLES)])


def keep_block(store: Store, depth: int, fold: Fold) -> None:
    """Keep the block that a fold over `depth` blocks has just finished, and the residuals behind it in place
    of those before; the last block's nobody needs."""
    layer = fold.done - 1
    store.save(f"sites-{layer}", of_layer(fold.supernet, layer))
    if fold.learnt and (learnt := fold.learnt[layer]):
        store.save(f"learnt-{layer}", learnt.tensors, {"before": learnt.before, "after": learnt.after})
    # The dense model's come behind the pruned one's.
    residual = [*fold.residual, *(fold.dense or [])] if fold.done < depth else None
    keep_residual(store, layer, residual, fold.real)


def keep_residual(store: Store, layer: int, residual: list[Any] | None, real: list[int]) -> None:
    """Keep the residuals behind a layer, of one stream or several, in place of those before."""
    store.save_step("residual", layer, residual, {"real": real, "devices": devices.count()})


def kept_residual(store: Store, scratch: Scratch | None) -> tuple[int, list[list[Any]], list[int]] | None:
    """(the layer, the streams, how many sequences of each batch count) of the residuals that are kept, dealt
    anew on another number of devices; with `scratch`, on disk. None if none are."""
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


def kept_fold(
    store: Store, make_empty: Callable[[], Supernet], scratch: Scratch | None, learns: bool = False
) -> Fold | None:
    """The fold as far as it is kept, its supernet begun as an empty one, or None if no block is; with
    `scratch`, residuals are on disk. FFNs have learnt something if the fold `learns`."""
    kept = kept_residual(store, scratch)
    if kept is None:
        return None
    layer, streams, real = kept
    supernet = make_empty()
    for index in range(layer + 1):
        saved = store.load(f"sites-{index}")
        if saved is None:
            return None
        with store.reading(f"sites-{index}"):
            supernet = with_layer(supernet, index, saved.arrays)
    # Behind the last block, no stream is needed.
    pruned, dense = (*streams, None, None)[:2]
    learnt = tuple(kept_learnt(store, index, scratch) for index in range(layer + 1)) if learns else ()
    return Fold(supernet, layer + 1, pruned or [], real, dense, learnt)


def kept_learnt(store: Store, layer: int, scratch: Scratch | None) -> Learnt | None:
    """What the FFN of a layer has learnt, on disk with `scratch`; None if it had nothing to learn."""
    saved = store.load(f"learnt-{layer}", records.LEARNT_FACTS)
    if saved is None:
        return None
    tensors = scratch.keep(saved.arrays) if scratch else jax.tree.map(jnp.asarray, saved.arrays)
    return Learnt(tensors, **saved.facts)


Answers = tuple[dict[str, Prediction], dict[str, Quality]]
"""The dense model's predictions on the evaluation texts, by name, and its quality there."""


def keep_answers(store: Store, answers: Answers) -> None:
    """Keep the dense model's answers on the evaluation texts."""
    predictions, qualities = answers
    keep_qualities(store, "dense", qualities, [prediction._asdict() for prediction in predictions.values()])


def kept_answers(store: Store) -> Answers | None:
    """The dense model's answers on the evaluation texts, or None if they are not kept."""
    saved = store.load("dense", records.QUALITY_FACTS)
    if saved is None:
        return None
    qualities = qualities_of(saved.facts)
    with store.reading("dense"):
        predictions = [Prediction(**fields) for fields in saved.arrays]
        return dict(zip(qualities, predictions, strict=True)), qualities


def keep_qualities(store: Store, name: str, qualities: Mapping[str, Quality], arrays: Any = None) -> None:
    """Keep how good a model is on every evaluation text, and `arrays` with it."""
    store.save(name, arrays, {text: quality.as_json() for text, quality in qualities.items()})


def kept_qualities(store: Store, name: str) -> dict[str, Quality] | None:
    """How good a model is on every evaluation text, or None if that is not kept."""
    saved = store.load(name, records.QUALITY_FACTS)
    return saved and qualities_of(saved.facts)


def qualities_of(saved: Mapping[str, Any]) -> dict[str, Quality]:
    """Qualities by name of the text, as they are kept."""
    return {text: Quality.of(figures) for text, figures in saved.items()}


def keep_metrics(store: Store, metrics: Any) -> None:
    """Keep how a change of what each site adds counts, `[L, 2, D, D]`, layer by layer."""
    for layer in range(len(metrics)):
        store.save(f"metric-{layer}", metrics[layer])


def kept_metrics(store: Store, depth: int, scratch: Scratch | None) -> Any:
    """What `keep_metrics` kept of a model of so many layers, or None if not all of it is; with `scratch`, it
    is on disk."""
    layers = []
    for layer in range(depth):
        saved = store.load(f"metric-{layer}")
        if saved is None:
            return None
        layers.append(scratch.keep(saved.arrays) if scratch else saved.arrays)
    return layers if scratch else devices.place(jnp.stack(layers), 3)


def keep_pool(store: Store, pool: TeacherBatch) -> None:
    """Keep the search text with the dense model's answers."""
    hidden = {"hidden": pool.hidden} if pool.hidden.size else {}
    store.save("pool", {"tokens": pool.tokens, "dense": pool.dense._asdict(), **hidden})


def kept_pool(store: Store) -> TeacherBatch | None:
    """The search text with the dense model's answers, or None if they are not kept."""
    saved = store.load("pool")
    if saved is None:
        return None
    with store.reading("pool"):
        arrays = jax.tree.map(jnp.asarray, saved.arrays)
        dense = Prediction(**arrays["dense"])
        count, *rest = dense.hidden.shape
        none = jnp.zeros((count, 0, *rest), dense.hidden.dtype)
        return TeacherBatch(arrays["tokens"], dense, arrays.get("hidden", none))


def keep_round(
    store: Store,
    kept: np.ndarray,
    grid: LevelGrid,
    rounds: list[dict[str, Any]],
    heads: np.ndarray | None,
) -> None:
    """Keep where a search stands after its last round: units `[2, L]`, the supernet's levels, the records,
    and the ranks `[L, U]` of attention's units, if they are settled."""
    levels = {"kept": grid.kept, "exists": grid.exists, "step": grid.step}
    arrays = {"kept": kept, "grid": levels} | ({} if heads is None else {"heads": heads})
    store.save_step("round", len(rounds), arrays, {"rounds": rounds})


def kept_round(
    store: Store,
) -> tuple[np.ndarray, LevelGrid, list[dict[str, Any]], np.ndarray | None] | None:
    """What `keep_round` kept last, or None before the first round."""
    last = store.last_step("round", records.ROUND_FACTS)
    if last is None:
        return None
    number, saved = last
    with store.reading(f"round-{number}"):
        found, grid = saved.arrays, LevelGrid(**saved.arrays["grid"])
        return found["kept"], grid, saved.facts["rounds"], found.get("heads")


History = list[list[float | None]]
"""The objectives met in a descent, step by step; None for what was not finite."""


def keep_descent(store: Store, step: int, levels: np.ndarray, history: History) -> None:
    """Keep where a descent stands after `step` steps: `levels [2, L]`, and the objectives met."""
    store.save_step("descent", step, levels, {"history": history})


def kept_descent(store: Store) -> tuple[int, np.ndarray, History] | None:
    """(steps done, and what `keep_descent` kept), or None before the first."""
    last = store.last_step("descent", records.DESCENT_FACTS)
    if last is None:
        return None
    step, saved = last
    return step, saved.arrays, saved.facts["history"]


def keep_search(store: Store, step: int, state: Any, history: list[dict[str, Any]], spent: int) -> None:
    """Keep where a search stands after `step` steps: its state (a pytree of arrays), the records so far, and
    the candidate-tokens spent."""
    leaves = [np.asarray(plain_key(leaf)) for leaf in jax.tree.leaves(state)]
    arrays = {str(index): leaf for index, leaf in enumerate(leaves) if leaf.size}
    empty = {
        str(index): {"shape": leaf.shape, "dtype": leaf.dtype.name}
        for index, leaf in enumerate(leaves)
        if not leaf.size
    }
    store.save_step("search", step, arrays, {"history": history, "spent": spent, "empty": empty})


def kept_search(store: Store, begun: Any) -> tuple[int, Any, list[dict[str, Any]], int]:
    """(steps done, state, records, candidate-tokens spent) of a search that would begin with the state
    `begun`, as far as they are kept."""
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
    """A leaf of a state, of a typed PRNG key its numbers."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def like_key(array: np.ndarray, leaf: Any) -> Any:
    """`array` as the kind of array that `leaf` is: a typed PRNG key, JAX's, or NumPy's."""
    if is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.asarray(array) if isinstance(leaf, jax.Array) else array
