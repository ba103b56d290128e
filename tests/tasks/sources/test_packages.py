"""The download: an index of our own on this machine, with every way it can fail."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from perdure.errors import FetchError, UnknownName
from perdure.tasks.sources import download, packages
from perdure.tasks.sources.assets import ASSETS, Asset
from perdure.tasks.sources.packages import package_file

CONTENT = bytes(range(256)) * 4000
NAME = "invented-1.0-py3-none-any.whl"
ASSET = Asset("invented", "1.0", NAME, hashlib.sha256(CONTENT).hexdigest(), len(CONTENT), "none")


@dataclass
class Index:
    """What the server does and has been asked."""

    url: str = ""
    content: bytes = CONTENT
    ranges: list[str | None] = field(default_factory=list)
    cut_after: int | None = None  # the first transfer breaks off here
    ignores_ranges: bool = False
    status: int = 200


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Index]:
    state = Index()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            if self.path.endswith(NAME):
                self.file()
            else:
                self.reply(state.status, f'<html><body><a href="/files/{NAME}">{NAME}</a></body></html>'.encode())

        def file(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and not state.ignores_ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(state.content) - 1}/{len(state.content)}")
            self.send_header("Content-Length", str(len(state.content) - start))
            self.end_headers()
            stop, state.cut_after = state.cut_after, None
            self.wfile.write(state.content[start:stop])

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"{state.url}/simple/")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(ASSETS, "invented", ASSET)
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)  # pip's own configuration plays no part here
    yield state
    server.shutdown()
    server.server_close()


def target() -> Path:
    return packages.cache_folder() / "packages" / NAME


def test_asking_pip_leaves_setuptools_usable() -> None:
    """torch.compile imports it, and it fails where pip was looked for in the same process."""
    code = "import perdure.tasks.sources.download as d; d.pip_settings(); import setuptools"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_fetches_once(index: Index) -> None:
    path = package_file("invented")
    assert path.read_bytes() == CONTENT
    assert package_file("invented") == path
    assert index.ranges == [None]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_how_far_a_download_is(
    index: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(download, "Console", partial(Console, force_terminal=terminal, width=120))
    package_file("invented")
    out, err = capsys.readouterr()
    assert out == ""
    assert (f"fetching {NAME}" in err) == terminal
    assert terminal or err == ""


def test_many_at_once_fetch_once(index: Index) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(package_file, ["invented"] * 4))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert index.ranges == [None]


def test_goes_on_where_the_connection_broke(index: Index) -> None:
    index.cut_after = 300_000
    assert package_file("invented").read_bytes() == CONTENT
    assert index.ranges[0] is None
    assert index.ranges[1] is not None
    assert 0 < int(index.ranges[1].removeprefix("bytes=").rstrip("-")) <= 300_000


def test_goes_on_with_the_part_of_an_earlier_process(index: Index) -> None:
    part = target().with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[:1000])
    assert package_file("invented").read_bytes() == CONTENT
    assert index.ranges == ["bytes=1000-"]
    assert not part.exists()


def test_a_server_that_ignores_ranges_starts_again(index: Index) -> None:
    index.ignores_ranges = True
    target().parent.mkdir(parents=True)
    target().with_name(NAME + ".part").write_bytes(b"x" * 1000)
    assert package_file("invented").read_bytes() == CONTENT


def test_a_wrong_part_is_thrown_away_and_fetched_whole(index: Index) -> None:
    target().parent.mkdir(parents=True)
    target().with_name(NAME + ".part").write_bytes(b"x" * 1000)
    assert package_file("invented").read_bytes() == CONTENT
    assert index.ranges == ["bytes=1000-", None]


def test_wrong_content_is_refused_and_removed(index: Index) -> None:
    index.content = CONTENT[:-1] + b"?"
    with pytest.raises(FetchError, match=rf"expected {ASSET.sha256}.*removed.*put it at .*{NAME}"):
        package_file("invented")
    assert [path.name for path in target().parent.iterdir() if path.suffix != ".lock"] == []


def test_a_damaged_cached_file_is_fetched_again(index: Index) -> None:
    package_file("invented")
    target().write_bytes(CONTENT[:-1] + b"?")
    assert package_file("invented").read_bytes() == CONTENT


def test_no_network_says_which_file_goes_where(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    with pytest.raises(FetchError) as error:
        package_file("invented")
    for part in (NAME, "invented==1.0", ASSET.sha256, str(target())):
        assert part in str(error.value)


def test_put_there_by_hand_needs_no_network(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    target().parent.mkdir(parents=True)
    target().write_bytes(CONTENT)
    assert package_file("invented") == target()


def test_damaged_and_no_network_says_both(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    target().parent.mkdir(parents=True)
    target().write_bytes(b"half")
    with pytest.raises(FetchError, match=r"was damaged and has been removed\. Could not download"):
        package_file("invented")


def test_a_second_index_is_asked(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"file:///nowhere {index.url}/simple/")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    assert package_file("invented").read_bytes() == CONTENT


def test_an_index_error_is_named(index: Index) -> None:
    index.status = 503
    with pytest.raises(FetchError, match="503"):
        package_file("invented")


def test_a_password_is_not_told(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    index.status = 401
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:secret@") + "/simple/")
    with pytest.raises(FetchError) as error:
        package_file("invented")
    assert "secret" not in str(error.value)
    told = "401 for url: https://me:se@cret@host/simple/x and http://host/a@b"
    assert download.without_passwords(told) == "401 for url: https://host/simple/x and http://host/a@b"


def test_full_disk_is_said_before_anything_is_fetched(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 10}))
    with pytest.raises(FetchError, match=r"No space for .*1 MB are needed.*PERDURE_CACHE"):
        package_file("invented")
    assert index.ranges == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_disk_that_fills_up_keeps_the_part(index: Index) -> None:
    part = target().with_name(NAME + ".part")
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(FetchError, match=r"disk is full.*resumes where it stopped"):
        package_file("invented")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_unwritable_cache_names_the_variable(index: Index) -> None:
    packages.cache_folder().mkdir(parents=True)
    packages.cache_folder().chmod(0o500)
    with pytest.raises(FetchError, match="PERDURE_CACHE"):
        package_file("invented")


def test_cache_that_is_a_file_names_the_variable(index: Index) -> None:
    packages.cache_folder().write_text("not a folder")
    with pytest.raises(FetchError, match="PERDURE_CACHE"):
        package_file("invented")


def test_unknown_asset_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'vader'"):
        package_file("vadre")


def test_table_is_well_formed() -> None:
    for asset in ASSETS.values():
        assert len(asset.sha256) == 64
        assert asset.size > 0
        assert asset.version in asset.filename
    assert len({asset.filename for asset in ASSETS.values()}) == len(ASSETS)
