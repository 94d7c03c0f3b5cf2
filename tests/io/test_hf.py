import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
import pytest
from huggingface_hub import errors
from io_samples import refusal
from safetensors.numpy import save_file

from tyr_jax.errors import UserError
from tyr_jax.io.hf import SafetensorsSource, load_params, resolve
from tyr_jax.model.spec import ModelConfig
from tyr_jax.model.tensors import all_specs

EMBED = "model.embed_tokens.weight"
Q = "model.layers.1.self_attn.q_proj.weight"


class Memory:
    """A checkpoint in memory."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors

    def keys(self) -> set[str]:
        return set(self.tensors)

    def read(self, key: str) -> np.ndarray:
        return self.tensors[key]


def random_tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        spec.key: rng.standard_normal(spec.checkpoint_shape).astype(np.float32) for spec in all_specs(config)
    }


@pytest.fixture
def config(tiny_config: Callable[..., ModelConfig]) -> ModelConfig:
    return tiny_config()


@pytest.fixture
def tensors(config: ModelConfig) -> dict[str, np.ndarray]:
    return random_tensors(config)


def test_layout(config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    params = load_params(Memory(tensors), config)
    q = params["blocks"]["q"]
    assert q.shape == (3, 32, 4, 8)
    assert q.dtype == jnp.float32
    np.testing.assert_array_equal(q[1, :, 2, 5], tensors[Q][2 * 8 + 5])
    half = load_params(Memory(tensors), config, jnp.bfloat16)
    assert half["blocks"]["q"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q), f"'{Q}' is missing from the checkpoint"),
        (lambda t: t.update(strange=t[Q]), "'strange' is in the checkpoint but not in a llama model"),
        (lambda t: t.update(strange=t.pop(Q)), f"'{Q}' is missing.*unknown ones instead, such as 'strange'"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t[Q][0]}), "q_proj.bias"),
        (lambda t: t.update({Q: t[Q].T[:, :31]}), rf"'{Q}' .*\[32, 31\].*\[32, 32\].*contradicts"),
        (lambda t: t.update({EMBED: t[EMBED][:50]}), rf"'{EMBED}' .*\[50, 32\].*\[96, 32\]"),
        (lambda t: t[Q].__setitem__((0, 0), np.nan), f"'{Q}' holds NaN"),
        (lambda t: t[Q].__setitem__((0, 0), -np.inf), f"'{Q}' holds NaN or infinity"),
    ],
)
def test_wrong_tensors(
    change: Callable[[dict[str, np.ndarray]], Any],
    message: str,
    config: ModelConfig,
    tensors: dict[str, np.ndarray],
) -> None:
    change(tensors)
    with pytest.raises(UserError, match=message):
        load_params(Memory(tensors), config)


def test_several_missing_are_counted(config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    with pytest.raises(UserError, match=r"tensor 'model.norm.weight' and 2 more are missing"):
        load_params(
            Memory({k: v for k, v in tensors.items() if k not in ("model.norm.weight", Q, "lm_head.weight")}),
            config,
        )


def test_inverse_frequencies_are_ignored(config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    load_params(Memory(tensors), config)


def test_tied_head(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config(tied=True)
    tensors = random_tensors(config)
    tensors["lm_head.weight"] = tensors[EMBED].copy()
    assert "unembed" not in load_params(Memory(tensors), config)
    tensors["lm_head.weight"][0, 0] += 1
    with pytest.raises(UserError, match=r"'lm_head\.weight' differs from"):
        load_params(Memory(tensors), config)


def test_absent_sublayers_have_no_tensors(tiny_config: Callable[..., ModelConfig]) -> None:
    base = tiny_config()
    layers = (base.layers[0], type(base.layers[0])(0, 0, 16))
    config = tiny_config(layers=2)
    hollow = ModelConfig(**{**vars(config), "layers": layers})
    tensors = random_tensors(hollow)
    assert "attn_norm" not in load_params(Memory(tensors), hollow)["blocks"][1]
    with pytest.raises(UserError, match=r"model\.layers\.1\.input_layernorm\.weight"):
        load_params(Memory(random_tensors(config)), hollow)


# --- files ---------------------------------------------------------------------------------------------


def test_single_file(tmp_path: Path, config: ModelConfig, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    source = SafetensorsSource(tmp_path)
    assert source.keys() == set(tensors)
    np.testing.assert_array_equal(source.read(Q), tensors[Q])


@pytest.mark.parametrize(("dtype", "name"), [(np.float64, "F64"), (np.int8, "I8")])
def test_unsupported_dtype(dtype: Any, name: str, tmp_path: Path) -> None:
    save_file({"a": np.ones(3, dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"tensor 'a'.*dtype {name}.*float32, bfloat16 or float16"):
        SafetensorsSource(tmp_path).read("a")


def write_shards(directory: Path, tensors: dict[str, np.ndarray]) -> None:
    keys = sorted(tensors)
    names = ("one.safetensors", "two.safetensors")
    for name, part in zip(names, (keys[::2], keys[1::2]), strict=True):
        save_file({key: tensors[key] for key in part}, directory / name)
    weight_map = {key: names[index % 2] for index, key in enumerate(keys)}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_missing_shard(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path, tensors)
    assert SafetensorsSource(tmp_path).keys() == set(tensors)
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(UserError, match=r"two\.safetensors is missing"):
        SafetensorsSource(tmp_path)


def test_tensor_in_two_shards(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path, tensors)
    save_file(tensors, tmp_path / "two.safetensors")
    with pytest.raises(UserError, match="is in two files"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_bad_index(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 40, 5000])
def test_truncated_file(keep: int, tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"model\.safetensors: it is truncated or corrupt"):
        SafetensorsSource(tmp_path)


def test_corrupt_header(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10) + b"not json!!" * 5)
    with pytest.raises(UserError, match="truncated or corrupt"):
        SafetensorsSource(tmp_path)


def test_only_pickles(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match="convert them to safetensors"):
        SafetensorsSource(tmp_path)


def test_empty_directory_and_gguf_hint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        SafetensorsSource(tmp_path)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UserError, match=r"give its path, .*x\.gguf"):
        SafetensorsSource(tmp_path)


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/passwd", "a/../../m", "", 3, None, ["m"], "m\0"])
def test_an_index_that_names_no_file_in_its_directory(name: Any, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"safetensors\.index\.json.* names? "):
        SafetensorsSource(tmp_path)


def test_every_flipped_byte_of_a_header(tmp_path: Path) -> None:
    """Damaged weights are either read as they are, or named and refused."""
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float16)}, path)
    whole = path.read_bytes()
    for place in range(len(whole) - 32):
        for bit in (0, 3, 6):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            message = refusal(lambda: read_all(tmp_path))
            assert not message or "model.safetensors" in message


def read_all(directory: Path) -> None:
    source = SafetensorsSource(directory)
    for key in source.keys():  # noqa: SIM118 - not a mapping
        source.read(key)


# --- names ---------------------------------------------------------------------------------------------


def test_resolve_existing(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "m.gguf").touch()
    assert resolve(str(tmp_path / "m.gguf")) == tmp_path / "m.gguf"
    (tmp_path / "m.txt").touch()
    with pytest.raises(UserError, match=r"m\.txt is a file"):
        resolve(str(tmp_path / "m.txt"))


@pytest.mark.parametrize(
    "name", ["./x", "../x", "/no/where", "~/nothing-here", "a/b/c", "model.gguf", "o/m.GGUF"]
)
def test_path_looking_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such file or directory"):
        resolve(name)


@pytest.mark.parametrize("name", ["x" * 5000, "./a\0b", "~nobody-of-this-name/m", "y" * 5000 + ".gguf"])
def test_names_that_no_file_can_have(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such file or directory"):
        resolve(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "m.gguf"])
def test_pipes_are_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}': it is not a regular file"):
        resolve(str(tmp_path / name if name == "m.gguf" else tmp_path))


def test_empty_name() -> None:
    with pytest.raises(UserError, match="name is empty"):
        resolve(" ")


def response(status: int) -> Any:
    """A response of the hub, of the class that the installed client uses."""
    for client in ("httpx2", "httpx"):
        try:
            module = __import__(client)
        except ImportError:
            continue
        return module.Response(status, request=module.Request("GET", "https://huggingface.co"))
    raise AssertionError("no HTTP client")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (lambda: errors.GatedRepoError("403", response=response(403)), "gated.*hf auth login"),
        (
            lambda: errors.RepositoryNotFoundError("404", response=response(404)),
            "no model 'owner/name' on the",
        ),
        (lambda: errors.LocalEntryNotFoundError("x"), "cannot be reached"),
        (lambda: errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (lambda: errors.HfHubHTTPError("500 oops\nmore", response=response(500)), "refused.*500 oops$"),
        (lambda: OSError(28, "No space left on device"), "cannot download.*No space left"),
        (lambda: RuntimeError("connection broke"), "cannot download.*connection broke"),
    ],
)
def test_hub_errors(error: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=message) as caught:
        resolve("owner/name")
    assert "owner/name" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_invalid_hub_id() -> None:
    with pytest.raises(UserError, match="'a b' is neither a file, a directory nor a valid hub id"):
        resolve("a b")


def test_hub_download_asks_for_no_pickles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        seen.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("owner/name") == tmp_path
    assert "*.safetensors" in seen["allow_patterns"]
    assert not any("bin" in pattern or "pt" in pattern for pattern in seen["allow_patterns"])


def test_what_a_library_quotes_of_a_file_is_cut_short(tmp_path: Path) -> None:
    header = json.dumps("x" * 100_000).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match="truncated or corrupt") as error:
        SafetensorsSource(tmp_path)
    assert len(str(error.value)) < 600
