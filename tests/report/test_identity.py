"""What other people read about a pruned model: names without folders, and the gain."""

import pytest
import record_samples

from tyr_jax.report.identity import choice_of, datasets_of, gain_of, portable, portable_values, title_of
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


@pytest.mark.parametrize(
    ("kl", "compared", "words"),
    [
        (
            {"uniform": 0.8, "searched": 0.6},
            [("searched", "uniform", 0.0004)],
            "The searched model was written, because it is surely better than the uniform one. On 8 "
            "sequences of text that was kept for this choice, the searched model's KL divergence from the "
            "dense model is 0.6000 nats per token, 25.0% below that of the uniform one (p < 0.001).",
        ),
        (
            {"uniform": 0.8, "searched": 0.9},
            [("searched", "uniform", 0.98)],
            "The uniform model was written, because nothing that was found is surely better. On 8 "
            "sequences of text that was kept for this choice, the searched model's KL divergence from the "
            "dense model is 0.9000 nats per token, 12.5% above that of the uniform one (p = 0.980).",
        ),
        ({"uniform": 0.8, "searched": None}, [("searched", "uniform", 1.0)], "model is not finite (p = 1.0"),
        ({"uniform": None, "searched": 0.9}, [("searched", "uniform", 0.0)], "of the uniform one is not fin"),
        ({"uniform": 0.0, "searched": 0.9}, [("searched", "uniform", 1.0)], "of the uniform one 0.0000 (p"),
        ({"uniform": 0.9, "searched": 0.9}, [("searched", "uniform", 1.0)], "of the uniform one 0.9000 (p"),
    ],
)
def test_the_choice(kl: dict[str, float | None], compared: list[tuple[str, str, float]], words: str) -> None:
    summary = record_samples.summary()
    assert choice_of(Summary(**summary)) == ""
    rows = [{"model": model, "than": than, "p": p} for model, than, p in compared]
    summary["choice"] = {"sequences": 8, "kl": kl, "compared": rows}
    summary["written"] = "searched" if compared[-1][2] < 0.05 else "uniform"
    assert words in choice_of(Summary(**summary))


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
