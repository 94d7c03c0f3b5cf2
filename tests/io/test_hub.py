"""Uploads with the hub's own client to a small fake hub on this machine."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

import tyr_jax
from tyr_jax.cli import prune
from tyr_jax.errors import UserError
from tyr_jax.io.hub import check_upload, upload
from tyr_jax.report.files import portable_records

TOKEN = "hf_right"


class FakeHub(BaseHTTPRequestHandler):
    """Repositories of files. Weights arrive by git LFS, all other files in the commit."""

    repositories: dict[str, dict[str, bytes]]
    stored: dict[str, bytes]
    full: bool

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def do_GET(self) -> None:
        repository = self.repositories.get("/".join(self.path.split("?")[0].split("/")[3:5]))
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            self.answer(
                {"name": "user", "type": "user"} if known else {"error": "who?"}, 200 if known else 401
            )
        elif repository is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif "/tree/" in self.path:
            files = [{"type": "file", "path": p, "size": len(b), "oid": "0"} for p, b in repository.items()]
            self.answer(files)
        else:
            self.answer({"id": "/".join(self.path.split("/")[3:5]), "siblings": [], "sha": "0"})

    def do_POST(self) -> None:
        address = f"http://{self.headers['Host']}"
        body = self.body()
        if self.path == "/api/repos/create":
            names = json.loads(body)
            name = f"{names.get('organization') or 'user'}/{names['name']}"
            self.repositories.setdefault(name, {})
            self.answer({"url": f"{address}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = ["lfs" if path.endswith(".safetensors") else "regular" for path in paths]
            files = [
                {"path": path, "uploadMode": mode, "shouldIgnore": False}
                for path, mode in zip(paths, modes, strict=True)
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {**entry, "actions": {"upload": {"href": f"{address}/lfs/{entry['oid']}"}}}
                for entry in wanted
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self.commit("/".join(self.path.split("/")[3:5]), body.decode().splitlines())
        else:
            self.answer({"error": self.path}, 404)

    def commit(self, name: str, lines: list[str]) -> None:
        files = self.repositories[name]
        for line in lines:
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        address = f"http://{self.headers['Host']}/{name}/commit/1"
        self.answer({"success": True, "commitUrl": address, "commitOid": "1", "pullRequestUrl": None})

    def do_PUT(self) -> None:
        data = self.body()
        if self.full:
            self.answer({"error": "Payload Too Large"}, 413)
            return
        self.stored[self.path.split("/")[-1]] = data
        self.answer({})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeHub]]:
    """An empty fake hub, which this process uses in place of the real one and is logged in to."""
    handler = type("Hub", (FakeHub,), {"repositories": {}, "stored": {}, "full": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield handler
    server.shutdown()
    server.server_close()


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def published(directory: Path) -> dict[str, bytes]:
    """What an upload of a model's directory holds: its files, without folders of this machine."""
    records = portable_records(directory)
    assert "summary.json" in records
    assert records.pop("manifest.json") is None
    files = {name: content for name, content in contents(directory).items() if name != "manifest.json"}
    return files | {name: text.encode() for name, text in records.items() if text is not None}


@pytest.mark.slow
def test_a_run_uploads_what_it_wrote(
    hub: type[FakeHub], tiny_arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*tiny_arguments, "--rounds", "0", "--push-to-hub", "user/small"]
    prune.main([*arguments, "--output", str(tmp_path / "one")])
    uploaded = hub.repositories["user/small"]
    assert uploaded == published(tmp_path / "one")
    assert str(tmp_path).encode() in (tmp_path / "one" / "summary.json").read_bytes()
    for name, content in uploaded.items():
        assert str(tmp_path.parent).encode() not in content, name
    assert json.loads(uploaded["summary.json"])["settings"]["output"] == "one"
    assert re.search(r"uploaded to http://\S+/user/small$", capsys.readouterr().out.strip())
    prune.main([*arguments, "--output", str(tmp_path / "two"), "--sparsity", "0.25", "0.5"])
    for part in ("0.25", "0.5"):
        assert hub.repositories[f"user/small-{part}"] == published(tmp_path / "two" / part)


def test_a_result_in_memory_is_uploaded(
    hub: type[FakeHub], tiny_model: Path, tiny_options: dict[str, Any], tmp_path: Path
) -> None:
    result = tyr_jax.prune_model(tiny_model, progress=False, **(tiny_options | {"rounds": 0}))
    assert result.push_to_hub("user/small").endswith("/user/small")
    assert hub.repositories["user/small"] == published(result.save(tmp_path / "saved"))
    with pytest.raises(UserError, match="there is a repository 'user/small' on the hub"):
        result.push_to_hub("user/small")
    hub.full = True
    with pytest.raises(UserError, match=r"413.*; try again, or save it and upload that"):
        result.push_to_hub("user/other")


def test_what_is_there_is_replaced_only_where_asked(
    hub: type[FakeHub], tiny_model: Path, tiny_arguments: list[str], tmp_path: Path
) -> None:
    hub.repositories["user/small"] = {"model-00001-of-00002.safetensors": b"old", ".gitattributes": b"lfs"}
    with pytest.raises(UserError, match=r"there is a repository 'user/small' on the hub; .* --overwrite"):
        check_upload("user/small", overwrite=False)
    check_upload("user/small", overwrite=True)
    upload(tiny_model, "user/small")
    assert hub.repositories["user/small"] == contents(tiny_model) | {".gitattributes": b"lfs"}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("user/a/b", {}, "cannot upload as 'user/a/b': Repo id must be in the form"),
        ("user/small", {"HF_TOKEN": "hf_wrong"}, "cannot upload as 'user/small': .*hf auth login"),
    ],
)
def test_what_cannot_be_uploaded_is_known_before_the_run(
    name: str,
    changes: dict[str, str],
    message: str,
    hub: type[FakeHub],
    tiny_arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for variable, value in changes.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit) as stopped:
        prune.main([*tiny_arguments, "--push-to-hub", name, "--output", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert "load model" not in error
    assert list(tmp_path.iterdir()) == []


def test_no_login_and_no_network(hub: type[FakeHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(UserError, match="'user/small': log in first, with `hf auth login`"):
        check_upload("user/small", overwrite=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="'user/small': HF_HUB_OFFLINE is set"):
        check_upload("user/small", overwrite=False)


def test_an_upload_that_fails_names_what_is_complete(hub: type[FakeHub], tiny_model: Path) -> None:
    hub.full = True
    with pytest.raises(UserError, match=f"413.*; {tiny_model} is complete, .*`hf upload user/small"):
        upload(tiny_model, "user/small")
