"""`perdure push` against a hub of our own on this machine: what arrives, and what is said when it refuses."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest
from huggingface_hub import HfApi, ModelCard
from typer.testing import CliRunner

from perdure.cli import app
from perdure.commands.push import push
from perdure.errors import ConfigError, StoreError
from perdure.files.durable import sync_tree
from tests.contract.runs import short_run


class Hub(BaseHTTPRequestHandler):
    """Takes a new repository and one commit, or refuses all with `status`."""

    status = 200
    asked: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.asked.append((self.path, body))
        if self.status != 200:
            self._give({"error": "You have no right to do this"}, self.status)
        elif self.path == "/api/repos/create":
            self._give({"url": "https://huggingface.co/org/mine"})
        elif "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self._give({"files": files})
        else:
            self._give({"commitUrl": "https://huggingface.co/org/mine/commit/1", "commitOid": "1", "success": True})

    def do_GET(self) -> None:
        self._give({"error": "Repository not found"}, 404)

    def _give(self, value: object, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    """An API of this hub; `Hub.asked` holds what came."""
    Hub.asked, Hub.status = [], 200
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield HfApi(endpoint=f"http://127.0.0.1:{server.server_port}", token="hf_no_secret")
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory, small_tasks, encoder_folder):
    folder = tmp_path_factory.mktemp("pushed") / "run"
    short_run(folder, small_tasks[:2], encoder_folder, "inc-lora")
    return folder


def _committed(asked):
    """Path -> bytes of the commit's files."""
    body = next(body for path, body in asked if "/commit/" in path)
    lines = [json.loads(line) for line in body.splitlines()]
    return {
        v["path"]: base64.b64decode(v["content"]) for line in lines if line["key"] == "file" for v in [line["value"]]
    }


def test_what_arrives_names_no_folder_of_this_machine(run, hub, encoder_folder):
    before = sync_tree(run)
    found = push(run, "org/mine", base_id="org/base", api=hub)
    assert sync_tree(run) == before
    created = json.loads(Hub.asked[0][1])
    assert (created["name"], created["organization"], created.get("visibility", "private")) == (
        "mine",
        "org",
        "private",
    )
    assert created.get("private", True)
    files = _committed(Hub.asked)
    assert (
        set(files)
        == set(found.files)
        >= {"README.md", "perdure.json", "adapter_config.json", "adapter_model.safetensors"}
    )
    assert not any(
        str(encoder_folder).encode() in content or str(run).encode() in content for content in files.values()
    )
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    card = ModelCard(files["README.md"].decode()).data
    assert (card.base_model, card.library_name) == ("org/base", "peft")
    assert {result.dataset_name for result in card.eval_results} == {"fruit", "sky"}


def test_a_dry_run_contacts_nobody(run, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_args, **_kwargs: pytest.fail("contacted"))
    done = CliRunner().invoke(app, ["push", str(run), "org/mine", "--base-id", "org/base", "--dry-run"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[0] == "Would upload to org/mine (private):"
    assert "  README.md  " in done.stdout
    assert "merge.json" not in done.stdout


def test_refusals_are_perdures_own(run, hub):
    with pytest.raises(ConfigError, match=r"learnt on a folder of this machine.*--base-id ORG/NAME"):
        push(run, "org/mine", api=hub)
    with pytest.raises(ConfigError, match="is not a name on the hub"):
        push(run, "a/b/c", api=hub)
    assert not Hub.asked
    Hub.status = 403
    with pytest.raises(
        ConfigError, match=r"The hub refuses 'org/mine': 403.* You have no right to do this.*hf auth login"
    ):
        push(run, "org/mine", base_id="org/base", api=hub)


def test_a_hub_that_is_not_there(run, monkeypatch):
    nobody = HfApi(endpoint="http://127.0.0.1:9", token="hf_no_secret")
    with pytest.raises(StoreError, match=r"The hub cannot be reached: .*push again"):
        push(run, "org/mine", base_id="org/base", api=nobody)
