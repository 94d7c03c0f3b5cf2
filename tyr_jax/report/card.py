"""The model card of a pruned model: what it is, how good, how to run it, how it was made."""

import importlib.resources

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from tyr_jax.report.identity import (
    base_model,
    command_of,
    datasets_of,
    gain_of,
    hub_texts,
    portable_values,
    title_of,
)
from tyr_jax.report.page import fate_of
from tyr_jax.report.render import fenced, grid, markdown, markdown_table
from tyr_jax.report.tables import Record, ffn_units, quality_table, recovery_table
from tyr_jax.workspace.records import written_model, written_name


def metadata(summary: Record, recovery: Record | None = None) -> str:
    """The card's metadata for the hub, as YAML: dense model, its licence, datasets, perplexity by text."""
    dense = base_model(summary)
    quality = recovery["quality"]["recovered"] if recovery else written_model(summary)["quality"]
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
            metric_value=round(figures["perplexity"], 4),
        )
        for text, figures in quality.items()
        if figures["perplexity"] is not None
    ]
    data = ModelCardData(
        base_model=dense["hub_id"],
        license=dense["licence"],
        datasets=datasets_of(summary, recovery) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["structured-pruning", "tyr_jax"],
        metrics=["perplexity"],
        model_name=title_of(summary, recovery),
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n")


def render(summary: Record, trust: bool, recovery: Record | None = None, gguf: bool = True) -> str:
    """The card of the model of `summary`.

    `trust` says whether the model comes with a modelling file, and `gguf` whether it can be written as a GGUF
    file. `recovery` is the record of its training, if it was trained.
    """
    source = importlib.resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    units, dense = written_model(summary)["units"], base_model(summary)
    return environment.from_string(source).render(
        metadata=metadata(summary, recovery),
        title=markdown(title_of(summary, recovery)),
        model=f"[{markdown(dense['name'])}](https://huggingface.co/{dense['hub_id']})"
        if dense["hub_id"]
        else markdown(dense["name"]),
        heads=f"{units['attention']['removed']:,} of {units['attention']['total']:,}",
        neurons=f"{units['ffn']['removed']:,} of {units['ffn']['total']:,}",
        noun=ffn_units(summary),
        gguf=gguf,
        choice=", in every layer alike"
        if written_name(summary) == "uniform"
        else "; a search chose how many in each layer",
        gain=markdown(gain_of(summary, recovery)),
        figures=markdown_table(grid(quality_table(summary))),
        fate=fate_of(summary),
        trust=trust,
        command=fenced(command_of(summary, recovery)),
        recovery=recovery,
        sources=markdown(", ".join(portable_values(recovery["sources"]))) if recovery else "",
        recovered=markdown_table(grid(recovery_table(recovery, digits=2))) if recovery else "",
    )
