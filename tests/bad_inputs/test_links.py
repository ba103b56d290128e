"""A link in place of a run's own folder is refused: what perdure replaces and removes there would be somebody else's."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.files.durable import write_json
from tests.bad_inputs.place import Bad, Place, refused
from tests.bad_inputs.test_stored_names import ADD, RESUME, ROLLBACK, precious


def linked(name: str, place: Place) -> Path:
    """`name` in the run, moved out of it and replaced by a link to where it is now."""
    folder, path = precious(place), place.run / name
    target = folder / path.name
    if path.exists():
        path.rename(target)
    else:
        target.mkdir()
    (target / "02-sky").mkdir(exist_ok=True)
    (target / "02-sky/mine.txt").write_text("not perdure's")
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(target)
    return target


@pytest.mark.parametrize("argv", [RESUME, ROLLBACK, ADD], ids=" ".join)
@pytest.mark.parametrize("name", ["stages", "unfinished", "deployed", "aside", "stages/02-sky", ".old-deployed"])
def test_of_a_run(name: str, argv: tuple[str, ...], place: Place, monkeypatch, capsys) -> None:
    says = (f"{name}' is a link to '{place.folder}", "Put the folder itself there")
    refused(Bad(lambda place: linked(name, place), says, 6, argv), place, monkeypatch, capsys)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("years of work")
    (tmp_path / ".partial-a.json").symlink_to(tmp_path / "mine.txt")
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "mine.txt").read_text() == "years of work"
    assert (tmp_path / "a.json").read_text() == "1\n"
