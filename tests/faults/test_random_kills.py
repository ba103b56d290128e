"""A sample of `make kills`, and that it would see a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.faults import random_kills
from tests.faults.random_kills import Kills, unlike

SAMPLE = range(1000, 1012)  # not those of `make kills`


@pytest.mark.slow
def test_a_sample_of_kills(tmp_path: Path) -> None:
    cases = Kills(tmp_path, 0)
    rows = [cases.case(number) for number in SAMPLE]
    assert [row for row in rows if row["result"] != "same"] == []
    assert sum(row["kills"] for row in rows) >= len(SAMPLE) / 2


@pytest.mark.slow
@pytest.mark.parametrize("harm,result", [("output", "different"), ("beside", "lost"), ("damaged", "lost")])
def test_harm_is_seen(harm: str, result: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = "add run sea.yaml --progress quiet"
    monkeypatch.setattr(random_kills, "COMMANDS", {command: "run"})
    cases, place, real = Kills(tmp_path, 0), tmp_path / "around/place", random_kills._called

    def called(argv: list[str], place_: Path, kill_after: float | None = None) -> Any:
        ended = None if kill_after is not None else real(argv, place_)
        if kill_after is None and (place / "killed").exists():
            file = {
                "output": "run/deployed/config.json",
                "beside": "sea.yaml",
                "damaged": "run/stages/01-fruit/log.jsonl",
            }
            (place / file[harm]).write_text("{}")
        elif kill_after is not None:
            (place / "killed").touch()
        return ended

    monkeypatch.setattr(random_kills, "_called", called)
    monkeypatch.setattr(random_kills, "_digests", _without_mark(random_kills._digests))
    assert cases.case(0)["result"] == result


def _without_mark(real: Any) -> Any:
    return lambda *args, **named: {n: d for n, d in real(*args, **named).items() if n != "killed"}


def test_a_difference_is_named() -> None:
    assert [*unlike({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}], "c": 4})] == ["/a/1/b: 2 became 3", "/c: None became 4"]
    assert [*unlike({"a": [1, 2]}, {"a": [1, 2]})] == []
