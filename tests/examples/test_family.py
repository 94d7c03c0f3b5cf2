"""The example of a family: a tiny model of it is read, pruned, compressed, written, and read again."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from tyr_jax import space
from tyr_jax.cli import evaluate, prune
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel, load_config, load_model, save_model
from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model.decoder import forward
from tyr_jax.model.families import FAMILIES, load_family
from tyr_jax.model.spec import LayerShape
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings

pytestmark = pytest.mark.slow

REFERENCE = "examples.family:SEED_OSS"
TOKENS = np.random.default_rng(0).integers(0, 290, (3, 24))
SIZES = {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 12}


@pytest.fixture(autouse=True)
def surroundings(modules: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the repository the current directory, and forget families and modelling files afterwards."""
    monkeypatch.chdir(Path(__file__).parents[2])
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


@pytest.fixture
def dense(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A directory that transformers wrote, with random weights and biases."""
    values = SIZES | {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48}
    config = transformers.SeedOssConfig(**values, attention_out_bias=True, max_position_embeddings=128)
    torch.manual_seed(0)
    model = transformers.SeedOssForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def logits(model: LoadedModel) -> np.ndarray:
    return np.asarray(forward(model.params, jnp.asarray(TOKENS), model.config))


def torch_logits(directory: Path, **options: Any) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, **options).eval()
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


def test_a_model_is_read_pruned_and_written(dense: Path, tmp_path: Path) -> None:
    model = load_model(str(dense), family=REFERENCE)
    config = model.config
    assert config.family == "seed_oss"
    assert (config.qkv_bias, config.out_bias, config.mlp_bias, config.qk_norm) == (True, True, False, False)
    np.testing.assert_allclose(logits(model), torch_logits(dense), rtol=0, atol=1e-4)

    pruning = PruningSettings(neuron_chunk=4)
    grid = space.level_grid(pruning.kinds(config), np.array([[1, 2, 3], [16, 32, 8]]), 5, 0.2)
    net = build_supernet(model.params, [TOKENS], FoldPlan(config, grid, pruning))
    levels = np.array([[1, 1, 3], [2, 4, 1]])
    small, shape = compress(model.params, net, levels, config)
    # An attention without heads keeps its bias, with one head that adds nothing.
    assert shape.layers == (LayerShape(1, 1, 16), LayerShape(1, 1, 48), LayerShape(4, 2, 0))
    masked = forward(mask(model.params, net, levels, config), jnp.asarray(TOKENS), config)

    (tmp_path / "pruned").mkdir()
    save_model(tmp_path / "pruned", LoadedModel(shape, small, model.tokenizer, model.hf_config))
    again = load_model(str(tmp_path / "pruned"))
    assert again.config == shape
    np.testing.assert_allclose(logits(again), masked, rtol=0, atol=1e-4)
    theirs = torch_logits(tmp_path / "pruned", trust_remote_code=True)
    np.testing.assert_allclose(theirs, logits(again), rtol=0, atol=1e-4)


def test_a_configuration_alone(dense: Path) -> None:
    with pytest.raises(UserError, match="'model_type' is 'seed_oss'"):
        load_config(str(dense))
    load_family(REFERENCE)
    config, _ = load_config(str(dense))
    assert config.layers == (LayerShape(4, 2, 48),) * 3


def test_absent_keys_have_the_defaults_of_transformers(dense: Path) -> None:
    load_family(REFERENCE)
    values = transformers.SeedOssConfig().to_dict()
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    short = {key: values[key] for key in (*sizes, "model_type")}
    assert config_from_hf(short) == config_from_hf(values)


def test_commands_know_it_by_reference(
    dense: Path, tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    chosen = ["--model", str(dense), "--family", REFERENCE, "--rounds", "0", "--output", output]
    prune.main([*tiny_arguments, *chosen])
    made = json.loads((tmp_path / "out" / "summary.json").read_text())["uniform"]["quality"]["words.txt"]
    capsys.readouterr()
    evaluate.main([output, "--trust-record", "--family", REFERENCE, "--json"])
    (row,) = json.loads(capsys.readouterr().out)["texts"]
    assert row["perplexity"] == pytest.approx(made["perplexity"], rel=1e-4)
    FAMILIES.pop("seed_oss")
    with pytest.raises(SystemExit):
        evaluate.main([output, "--trust-record"])
    assert "config key 'model_type' is 'seed_oss', which is not supported" in capsys.readouterr().err
