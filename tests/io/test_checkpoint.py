import dataclasses
import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tyr_jax.errors import UserError
from tyr_jax.io import checkpoint
from tyr_jax.io.checkpoint import LoadedModel, load_config, load_model, plan_shards, save_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.rope import Positions
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import iter_tensors, random_params

Configs = Callable[..., ModelConfig]
GENERATION = {"eos_token_id": 2, "temperature": 0.7}


@pytest.fixture
def save(tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Path]:
    def write(config: ModelConfig, params: Any = None, **options: Any) -> Path:
        params = params or random_params(config, jax.random.key(0), scale=0.2)
        base = {"model_type": config.family, "initializer_range": 0.5, "torch_dtype": "bfloat16"}
        save_model(tmp_path, LoadedModel(config, params, tiny_tokenizer, base, GENERATION), **options)
        return tmp_path

    return write


def assert_equal_params(ours: LoadedModel, params: Any, config: ModelConfig) -> None:
    assert ours.config == config
    pairs = zip(iter_tensors(ours.params, config), iter_tensors(params, config), strict=True)
    for (spec, a), (_, b) in pairs:
        np.testing.assert_array_equal(a, b, err_msg=spec.key)


HETEROGENEOUS = (LayerShape(4, 2, 48), LayerShape(0, 0, 20), LayerShape(3, 1, 0), LayerShape(0, 0, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": True},
        {"layers": HETEROGENEOUS},
        {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
        {"family": "qwen3", "qk_norm": True, "head_dim": 12},
        {"family": "qwen3", "qk_norm": True, "layers": HETEROGENEOUS},
    ],
    ids=str,
)
def test_round_trip(changes: dict[str, Any], save: Callable[..., Path], tiny_config: Configs) -> None:
    config = ModelConfig(**{**vars(tiny_config(vocab=300)), **changes})
    params = random_params(config, jax.random.key(0))
    directory = save(config, params)
    loaded = load_model(str(directory))
    assert_equal_params(loaded, params, config)
    assert loaded.generation_config == GENERATION
    assert loaded.hf_config["initializer_range"] == 0.5
    kind = {"llama": "Llama", "qwen3": "Qwen3"}[config.family] if config.uniform else "Pruned"
    assert loaded.hf_config["architectures"] == [f"{kind}ForCausalLM"]
    assert loaded.source == str(directory)
    assert ("per_layer_config" in loaded.hf_config) == ("layers" in changes)
    assert loaded.tokenizer.chat_template.startswith("{% for message")
    assert loaded.tokenizer("the cat</s>").input_ids[-1] == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_transformers_reads_what_we_write(
    dtype: str, save: Callable[..., Path], tiny_config: Configs
) -> None:
    config = tiny_config(vocab=300)
    params = random_params(config, jax.random.key(0), scale=0.2)
    directory = save(config, params, dtype=dtype, max_shard_bytes=40_000)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 1
    written = json.loads((directory / "config.json").read_text())
    assert written["dtype"] == dtype
    assert "torch_dtype" not in written
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype="auto")
    assert model.dtype == getattr(torch, dtype)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 30))
    with torch.no_grad():
        theirs = model.float()(torch.from_numpy(tokens)).logits.numpy()
    again = load_model(str(directory))
    ours = forward(again.params, jnp.asarray(tokens), config)
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4


def test_saved_tokenizer_has_the_name_everyone_knows(save: Callable[..., Path], tiny_config: Configs) -> None:
    settings = json.loads((save(tiny_config(vocab=300)) / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_plan_shards(tiny_config: Configs) -> None:
    config = tiny_config(vocab=300)
    one = plan_shards(config, 4, 10**9)
    assert len(one) == 1
    many = plan_shards(config, 4, 10_000)
    assert [item for shard in many for item in shard.items()] == list(one[0].items())
    parts = [[spec for specs in shard.values() for spec in specs] for shard in many]
    sizes = [sum(int(np.prod(spec.shape)) * 4 for spec in specs) for specs in parts]
    assert all(size <= 10_000 or len(shard) == 1 for size, shard in zip(sizes, many, strict=True))


def test_overflow_names_the_tensor(save: Callable[..., Path], tiny_config: Configs) -> None:
    config = tiny_config(vocab=300)
    params = random_params(config, jax.random.key(0))
    params["final_norm"] = params["final_norm"] * 1e6
    with pytest.raises(UserError, match=r"'model\.norm\.weight' is not finite in float16"):
        save(config, params, dtype="float16")


def test_unsupported_dtype(save: Callable[..., Path], tiny_config: Configs) -> None:
    with pytest.raises(UserError, match="int8"):
        save(tiny_config(vocab=300), dtype="int8")


def test_full_disk(save: Callable[..., Path], tiny_config: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
        save(tiny_config(vocab=300))


@pytest.mark.parametrize(("limit", "what"), [(500, "weights"), (3000, "tokenizer")])
def test_writes_that_really_fail(
    limit: int,
    what: str,
    save: Callable[..., Path],
    tiny_config: Configs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a limit on file sizes, the libraries fail with the operating system's own error."""
    resource = pytest.importorskip("resource")
    if what == "tokenizer":
        monkeypatch.setattr(checkpoint, "_write_weights", lambda *_: None)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(UserError, match=rf"cannot write (the )?{what} into .*File too large"):
            save(tiny_config(vocab=300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_missing_directory(tiny_config: Configs, tiny_tokenizer: Any, tmp_path: Path) -> None:
    config = tiny_config(vocab=300)
    params = random_params(config, jax.random.key(0))
    base = {"model_type": "llama"}
    with pytest.raises(UserError, match=r"cannot write.*gone"):
        save_model(tmp_path / "gone", LoadedModel(config, params, tiny_tokenizer, base))


def test_vocabulary_larger_than_the_embeddings(
    save: Callable[..., Path], tiny_config: Configs, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    count = len(tiny_tokenizer)
    directory = save(tiny_config(vocab=count - 1))
    with pytest.raises(UserError, match=f"id {count - 1}, but the model has only {count - 1} embeddings"):
        load_model(str(directory))


def test_a_token_around_a_text_that_has_no_embedding(save: Callable[..., Path], tiny_config: Configs) -> None:
    directory = save(tiny_config(vocab=300))
    values = json.loads((directory / "tokenizer.json").read_text())
    special = {"<s>": {"id": "<s>", "ids": [300], "tokens": ["<s>"]}}
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}]
    kind = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    (directory / "tokenizer.json").write_text(json.dumps(values | {"post_processor": kind}))
    with pytest.raises(UserError, match="'around each text' with id 300, but the model has only 300"):
        load_model(str(directory))


def test_a_vocabulary_without_tokens(save: Callable[..., Path], tiny_config: Configs) -> None:
    directory = save(tiny_config(vocab=300))
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    empty.save_pretrained(directory)
    with pytest.raises(UserError, match=r"the tokenizer of .* has no tokens"):
        load_model(str(directory))


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", ["NaN", "-Infinity", "1e999", '"\\ud800"', "[" * 10**5, "9" * 5000, "", "\0"]
)
def test_what_could_not_be_written_again_is_not_read(
    name: str, text: str, save: Callable[..., Path], tiny_config: Configs
) -> None:
    """Otherwise writing would fail hours later."""
    directory = save(tiny_config(vocab=300))
    path = directory / name
    values = json.dumps(json.loads(path.read_text()) | {"initializer_range": "here"})
    path.write_text(values.replace('"here"', text))
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        load_model(str(directory))


def test_keys_are_ignored_in_one_model(save: Callable[..., Path], tiny_config: Configs) -> None:
    """What is said of one model does not hold for the next one that is loaded."""
    directory = save(tiny_config(vocab=300))
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | {"frobnicate": 3}))
    for load in (load_config, load_model):
        load(str(directory), ignore_keys=["frobnicate"])
        with pytest.raises(UserError, match=r"config\.json: config key 'frobnicate'"):
            load(str(directory))


def test_errors_name_the_file(save: Callable[..., Path], tiny_config: Configs) -> None:
    directory = save(tiny_config(vocab=300))
    values = json.loads((directory / "config.json").read_text())
    for key, value in (("hidden_size", None), ("dtype", ["float32"]), ("num_hidden_layers", 10**9)):
        (directory / "config.json").write_text(json.dumps(values | {key: value}))
        for load in (load_config, load_model):
            # The stored dtype is only needed where the weights are not read.
            if key != "dtype" or load is load_config:
                with pytest.raises(UserError, match=rf"config\.json.*{key}"):
                    load(str(directory))


@pytest.mark.parametrize(
    ("config", "base"),
    [
        ({"positions": (Positions(window=8),)}, {}),
        ({}, {"initializer_range": float("nan")}),
        ({}, {"_note": "\ud800"}),
        ({}, {"_note": {1, 2}}),
        ({"positions": (Positions(float("inf")),)}, {}),
    ],
)
def test_what_no_config_can_say_is_refused_before_anything_is_written(
    config: dict[str, Any],
    base: dict[str, Any],
    tiny_config: Configs,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    whole = tiny_config(vocab=300)
    params = random_params(whole, jax.random.key(0))
    model = LoadedModel(dataclasses.replace(whole, **config), params, tiny_tokenizer, base)
    with pytest.raises(UserError):
        save_model(tmp_path, model)
    assert not list(tmp_path.iterdir())


def test_incomplete_directories(save: Callable[..., Path], tiny_config: Configs, tmp_path: Path) -> None:
    directory = save(tiny_config(vocab=300))
    (directory / "generation_config.json").unlink()
    assert load_model(str(directory)).generation_config is None
    (directory / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_model(str(directory))
    (directory / "config.json").unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        load_model(str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        load_model(str(directory))


def test_config_that_contradicts_the_weights(save: Callable[..., Path], tiny_config: Configs) -> None:
    directory = save(tiny_config(vocab=300))
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 40}))
    with pytest.raises(UserError, match=r"gate_proj\.weight.*\[48, 32\].*\[40, 32\].*contradicts"):
        load_model(str(directory))


@pytest.mark.smollm2
def test_smollm2_survives_the_way_through_hugging_face(smollm2: LoadedModel, tmp_path: Path) -> None:
    save_model(tmp_path, smollm2, jnp.bfloat16)
    again = load_model(str(tmp_path))
    assert again.config == smollm2.config
    assert again.generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    half = smollm2.params["blocks"]["q"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(again.params["blocks"]["q"], half)
    text = "In 1984, <|im_start|>user\nçà et là<|im_end|>"
    assert again.tokenizer(text).input_ids == smollm2.tokenizer(text).input_ids
    assert again.tokenizer.chat_template == smollm2.tokenizer.chat_template
