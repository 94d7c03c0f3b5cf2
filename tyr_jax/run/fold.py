"""The fold that builds a supernet, as a stage of a run: shown, logged and saved block by block."""

import functools

from tyr_jax.data import Splits
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.pruning.fold import Fold, FoldPlan, build_supernet
from tyr_jax.pruning.supernet import Supernet, empty_supernet
from tyr_jax.run import resume
from tyr_jax.run.prepare import Dense, Run
from tyr_jax.space import LevelGrid
from tyr_jax.workspace.store import Store


def fold_plan(run: Run, dense: Dense, grid: LevelGrid) -> FoldPlan:
    """The fold that prunes every site to the levels of `grid`, as the settings say."""
    settings = run.settings
    return FoldPlan(
        dense.model.config, grid, settings.pruning, settings.seed, dense.metrics, scratch=run.scratch
    )


def fold(run: Run, model: LoadedModel, splits: Splits, plan: FoldPlan, name: str, store: Store) -> Supernet:
    """Build the supernet of a `plan` on the calibration text, shown as the stage of this name. `store` keeps
    its finished blocks."""
    kinds, depth = len(plan.grid.kept), model.config.depth
    with run.progress.stage(name, kinds * depth, "sites") as stage:
        dtype = model.params["embed"].dtype
        empty = functools.partial(empty_supernet, dtype, plan.config, plan.grid, plan.settings, plan.scratch)
        begun = resume.load_fold(store, empty, plan.scratch, plan.config if plan.passes else None)
        if begun is not None:
            stage.advance(kinds * begun.done, note=resume.KEPT)

        def on_site(site: str, damping: float) -> None:
            raised = damping > plan.settings.damping * 1.01
            stage.advance(note=f"{site}: damping raised to {damping:.2g}" if raised else site)
            if raised:
                run.events.write("damping raised", site=site, damping=damping, stage=name)

        def on_block(fold: Fold) -> None:
            resume.save_block(store, depth, fold)
            if fold.learnt and (learnt := fold.learnt[-1]):
                run.events.write(
                    "reconstructed", layer=fold.done - 1, before=learnt.before, after=learnt.after
                )

        texts = splits.calibration, splits.openings
        return build_supernet(model.params, texts, plan, begun=begun, on_site=on_site, on_block=on_block)
