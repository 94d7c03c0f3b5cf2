"""What other people read about a pruned model: names without folders, and the gain."""

import pytest
import record_samples

from tyr_jax.report.identity import datasets_of, gain_of, portable, portable_values, title_of
from tyr_jax.workspace.records import Recovery, Summary


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/home/me/my texts/a.txt@2", "a.txt@2"),
        ("--output=/home/me/pruned", "--output=pruned"),
        ("~/models/dense/", "dense/"),
        (r"C:\models\dense", "dense"),
        (r"C:\dense", "dense"),
        ("/texts/words.txt (sha256 4af4)", "words.txt (sha256 4af4)"),
        ("/pruned", "pruned"),
        ("someone/model", "someone/model"),
        ("texts/a.txt", "texts/a.txt"),
        ("someone/texts:en:train@2", "someone/texts:en:train@2"),
        ("builtin", "builtin"),
        ("0.5", "0.5"),
    ],
)
def test_no_folders_of_the_makers_machine(said: str, told: str) -> None:
    assert portable(said) == told
    assert portable_values({"a": [said, 1, None]}) == {"a": [told, 1, None]}


def test_the_title_names_the_dense_model() -> None:
    summary = record_samples.summary()
    assert title_of(Summary(**summary)) == "Dense-1M, pruned to 50.0% sparsity"
    recovered = title_of(Summary(**summary), Recovery(**record_samples.recovery()))
    assert recovered == "Dense-1M, pruned to 50.0% sparsity and recovered"
    del summary["base_model"]
    summary["settings"]["model"] = "/models/other"
    assert title_of(Summary(**summary)) == "other, pruned to 50.0% sparsity"


def test_the_gain() -> None:
    summary = record_samples.summary()
    summary["dense"]["size"]["parameters"] = 1000
    for model, kl in (("uniform", 0.8), ("searched", 0.6)):
        summary[model]["size"]["parameters"] = 600
        summary[model]["quality"] = {"words.txt": {"perplexity": 5.0, "kl": kl}}
    fewer = "It has 40% fewer parameters and a mean KL divergence of"
    assert gain_of(Summary(**summary)) == (
        f"{fewer} 0.600 nats per token from the dense model, 25% below that of uniform pruning."
    )
    summary["searched"]["quality"]["words.txt"]["kl"] = 0.8
    assert gain_of(Summary(**summary)).endswith("dense model, about equal to that of uniform pruning.")
    summary["searched"]["quality"]["words.txt"]["kl"] = 1.2
    assert gain_of(Summary(**summary)).endswith("50% above that of uniform pruning.")
    summary["uniform"]["quality"]["words.txt"]["kl"] = None
    assert gain_of(Summary(**summary)) == f"{fewer} 1.200 nats per token from the dense model."
    summary["uniform"]["quality"]["words.txt"]["kl"] = 0.8
    summary["searched"]["quality"]["words.txt"]["kl"] = None
    assert gain_of(Summary(**summary)) == "It has 40% fewer parameters."
    summary["searched"] = None
    assert gain_of(Summary(**summary)) == f"{fewer} 0.800 nats per token from the dense model."
    summary["settings"]["layout"] = "masked"
    assert gain_of(Summary(**summary)).startswith("It has the dense model's shapes and a mean")


def test_what_is_left_after_training() -> None:
    """The gain is that of the model that was trained."""
    summary, recovery = record_samples.summary(), record_samples.recovery()
    told = gain_of(Summary(**summary), Recovery(**recovery))
    assert "a mean KL divergence of 0.150 nats per token from the dense model" in told
    assert told.endswith(", 25% below that before the training.")
    recovery["quality"]["recovered"]["words.txt"]["kl"] = None
    assert "divergence" not in gain_of(Summary(**summary), Recovery(**recovery))


def test_hub_datasets_of_both_jobs() -> None:
    summary, recovery = record_samples.summary(), record_samples.recovery()
    summary["settings"]["data"]["calibration"] = ["someone/texts:en:train", "builtin"]
    recovery["settings"]["data"] = ["someone/chats@2", "someone/texts"]
    assert datasets_of(Summary(**summary)) == ["someone/texts"]
    assert datasets_of(Summary(**summary), Recovery(**recovery)) == ["someone/texts", "someone/chats"]
