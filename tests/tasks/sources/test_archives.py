"""Members of zip and tar files, nested ones too, and nothing that leads outside."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from perdure.errors import FetchError
from perdure.tasks.sources import archives
from perdure.tasks.sources.archives import member, members


def tar(files: dict[str, bytes], link: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("inner/a.txt")
            info.type, info.linkname = tarfile.SYMTYPE, link
            file.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "a-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("data/b.txt", "data/a.txt", "data/c.csv", "other/d.txt"):
            file.writestr(name, name)
    return path


def test_members_by_prefix_and_suffix_in_order(wheel: Path) -> None:
    assert list(members(wheel, "data/", ".txt")) == [("data/a.txt", b"data/a.txt"), ("data/b.txt", b"data/b.txt")]


def test_member_of_a_nested_archive(tmp_path: Path) -> None:
    path = tmp_path / "a-1.tar.gz"
    path.write_bytes(tar({"a-1/inner.tar.gz": tar({"x/t.txt": b"found"}), "a-1/other.txt": b"no"}))
    assert member(path, "inner.tar.gz", "t.txt") == b"found"


def test_a_name_matches_whole_path_parts_only(wheel: Path) -> None:
    with pytest.raises(FetchError, match=r"no member .*version"):
        member(wheel, ".txt")


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(tar({}, link="/etc/passwd"))
    with pytest.raises(FetchError, match="no member"):
        member(path, "a.txt")


def test_damaged_archive_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(b"not an archive")
    with pytest.raises(FetchError, match=r"a\.tar\.gz cannot be read"):
        member(path, "a.txt")
    with pytest.raises(FetchError, match=r"a\.tar\.gz cannot be read"):
        list(members(path))


def test_absurdly_large_member_is_refused(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "LIMIT", 5)
    with pytest.raises(FetchError, match=r"data/a\.txt"):
        member(wheel, "data/a.txt")
