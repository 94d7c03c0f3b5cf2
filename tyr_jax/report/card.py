"""The model card of a pruned model: what it is, how good, how to run it, how it was made."""

import importlib.resources

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from tyr_jax.formatting import shown
from tyr_jax.report.identity import (
    base_model,
    choice_of,
    command_of,
    datasets_of,
    gain_of,
    hub_texts,
    portable_values,
    title_of,
)
from tyr_jax.report.page import fate_of
from tyr_jax.report.render import fenced, grid, markdown, markdown_table
from tyr_jax.report.tables import listed, quality_table, recovery_table
from tyr_jax.workspace.records import Recovery, Summary


def metadata(summary: Summary, recovery: Recovery | None = None) -> str:
    """The card's metadata for the hub, as YAML: dense model, its licence, datasets, perplexity by text."""
    dense = base_model(summary)
    quality = recovery.quality.recovered if recovery else summary.final.quality
    on_hub = hub_texts(summary, recovery)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=on_hub[text].name if text in on_hub else text,
            dataset_name=text,
            dataset_config=(on_hub[text].config or None) if text in on_hub else None,
            dataset_split=on_hub[text].split if text in on_hub else None,
            metric_type="perplexity",
            metric_name="Perplexity",
            metric_value=round(figures.perplexity, 4),
        )
        for text, figures in quality.items()
        if figures.perplexity is not None
    ]
    data = ModelCardData(
        base_model=dense.hub_id,
        license=dense.licence,
        datasets=datasets_of(summary, recovery) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["structured-pruning", "tyr_jax"],
        metrics=["perplexity"],
        model_name=title_of(summary, recovery),
        eval_results=results or None,
    )
    return shown(data.to_yaml(line_break="\n"))


def render(summary: Summary, trust: bool, recovery: Recovery | None = None, gguf: bool = True) -> str:
    """The card of the model of `summary`.

    `trust` says whether the model comes with a modelling file, and `gguf` whether it can be written as a GGUF
    file. `recovery` is the record of its training, if it was trained.
    """
    source = importlib.resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    dense, nouns = base_model(summary), summary.nouns
    removed = [
        f"{units.removed:,} of {units.total:,} {markdown(nouns[kind])}"
        for kind, units in summary.final.units.items()
    ]
    return environment.from_string(source).render(
        metadata=metadata(summary, recovery),
        title=markdown(title_of(summary, recovery)),
        model=f"[{markdown(dense.name)}](https://huggingface.co/{dense.hub_id})"
        if dense.hub_id
        else markdown(dense.name),
        removed=listed(removed),
        gguf=gguf,
        choice=", in every layer alike"
        if summary.written_name == "uniform"
        else "; a search chose how many in each layer",
        gain=markdown(gain_of(summary, recovery)),
        chosen=markdown(choice_of(summary)),
        figures=markdown_table(grid(quality_table(summary))),
        fate=fate_of(summary),
        trust=trust,
        command=fenced(command_of(summary, recovery)),
        recovery=recovery,
        sources=markdown(", ".join(portable_values(recovery.sources))) if recovery else "",
        recovered=markdown_table(grid(recovery_table(recovery, digits=2))) if recovery else "",
    )
