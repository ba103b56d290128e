"""What grows with every task is said before a run begins, with the setting that bounds it."""

from __future__ import annotations

from perdure.config.composition import resolve_method
from perdure.methods.contract.build import build_method
from perdure.methods.table import PRESETS
from tests.contract.runs import short_run


def growing(method: object) -> dict[str, str]:
    parts = build_method(resolve_method(method)).parts()  # pyright: ignore[reportArgumentType]
    return {name.partition(".")[0]: why for name, part in parts.items() if (why := part.grows())}


def test_which_presets_grow() -> None:
    found = {name: sorted(growing(name)) for name in PRESETS if PRESETS[name].stream != "joint"}
    assert {name: parts for name, parts in found.items() if parts} == {
        **{name: ["init", "replay"] for name in ("slice", "slice+ps-lora", "slice+n-lora", "slice+replay")},
        **{name: ["replay"] for name in ("replay", "a-gem")},
        **{name: ["consolidate"] for name in ("average", "ties", "dare", "magmax", "per-task")},
        "lwf": ["penalties"],
    }


def test_a_bound_ends_it() -> None:
    assert "(bounded by in_all)" in growing("replay")["replay"]
    assert growing({"preset": "replay", "replay": {"in_all": 512}}) == {}
    assert "replay_batches_in_all" in growing("slice")["init"]
    bounded = {"preset": "slice", "init": {"replay_batches_in_all": 64}, "replay": {"in_all": 512}}
    assert growing(bounded) == {}
    absolute = {"preset": "o-lora", "penalties": {"overlap": {"form": "absolute"}}}
    assert "bounded with form: square" in growing(absolute)["penalties"]


def test_a_run_says_it_first_and_records_it(tmp_path, small_tasks, encoder_folder) -> None:
    from perdure.state.store import Store
    from perdure.training.reporter import Quiet

    class Told(Quiet):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def note(self, line: str) -> None:
            self.lines.append(line)

    told = Told()
    short_run(tmp_path / "run", small_tasks[:1], encoder_folder, "replay", report=told)
    assert told.lines[0] == "Grows with every task: replay: 128 examples of every task are kept (bounded by in_all)"
    assert Store(tmp_path / "run").initial["grows"] == [
        "replay: 128 examples of every task are kept (bounded by in_all)"
    ]
    short_run(tmp_path / "plain", small_tasks[:1], encoder_folder, "inc-lora", report=(plain := Told()))
    assert not any("Grows" in line for line in plain.lines)
