"""Scoring and measuring on a base, and a guarded merge of folders from end to end, on a tiny model."""

import json
from dataclasses import replace
from statistics import fmean

import pytest
import torch

from perdure.adapters.folder import Adapter, write_adapter
from perdure.backbones.base import Prediction
from perdure.commands.guarded_merge import AddedAdapter, guarded_folders
from perdure.commands.learn import learn
from perdure.errors import AdapterError, ConfigError, StoreError
from perdure.merging.folders import merge_folders
from perdure.merging.guarded import Guard
from perdure.merging.paired_loss import PairedLoss
from perdure.merging.rules import rule_named
from perdure.ops.lowrank import LowRank, add_updates, dense
from perdure.tasks.task import Task
from perdure.training.workbench import Workbench
from tests.adapter_cases import random_folder
from tests.merging.merge_cases import gained_sums


@pytest.fixture(scope="module")
def backbone(encoder_folder):
    return {"kind": "encoder", "model": str(encoder_folder)}


@pytest.fixture(scope="module")
def places(tmp_path_factory, backbone, small_tasks):
    """One adapter a task, trained apart on one base."""
    out = tmp_path_factory.mktemp("runs") / "apart"
    training = {"epochs": 2, "batch_size": 10, "learning_rate": 0.05}
    learn(out=out, tasks=small_tasks[:2], method="per-task", backbone=backbone, training=training, lora={"rank": 2})
    return [out / "stages" / "01-fruit" / "adapter", out / "stages" / "02-sky" / "adapter"]


def test_scores_are_those_of_the_deployed_update(places, backbone, small_tasks):
    update = dict(Adapter(places[0]))
    bench = Workbench(backbone, small_tasks[:2], update)
    untrained, trained = (fmean(bench.outcomes(u, "fruit", "test")) for u in ({}, update))
    stored = json.loads((places[0].parent / "scores.json").read_text())["fruit"]["score"]
    before = json.loads((places[0].parent.parent / "00-untrained" / "scores.json").read_text())["fruit"]["score"]
    assert (untrained, trained) == (before, stored)
    assert fmean(bench.outcomes({}, "fruit", "test")) == untrained, "nothing is left behind"


def test_moments_are_of_the_inputs_at_real_positions(places, backbone, small_tasks):
    update = dict(Adapter(places[0]))
    bench = Workbench(backbone, small_tasks[:2], update)
    found = bench.moments("fruit", update, examples=5)
    assert {name: moment.shape for name, moment in found.items()} == {n: (d.shape[1],) * 2 for n, d in update.items()}
    rows: list[torch.Tensor] = []
    module = "encoder.layer.0.attention.self.query"
    layer = bench.model.modules[module].layer
    handle = layer.register_forward_pre_hook(lambda _m, args: rows.append(args[0][0]))
    with torch.no_grad(), bench.model.deployed(update):
        for example in small_tasks[0].train[:5]:  # one by one: no padding
            bench.backbone.features(bench.backbone.collate([example]))
    handle.remove()
    inputs = torch.cat(rows)
    torch.testing.assert_close(found[module], inputs.mT @ inputs / len(inputs), rtol=1e-4, atol=1e-5)


def test_covariance_gain_of_folders_uses_them(places, backbone, small_tasks, tmp_path):
    updates = [dict(Adapter(place)) for place in places]
    bench = Workbench(backbone, small_tasks[:2], updates[0])
    moments = [bench.moments(task.name, update) for task, update in zip(small_tasks, updates, strict=False)]
    report = merge_folders(places, tmp_path / "out", rule_named("covariance-gain"), moments=moments)
    assert (report.rank, report.energy) == (4, 1.0)
    expected = gained_sums(updates, moments)
    for module, delta in Adapter(tmp_path / "out").items():
        torch.testing.assert_close(dense(delta), dense(expected[module]), rtol=1e-4, atol=1e-5)


def test_a_guarded_merge_from_end_to_end(places, backbone, small_tasks, tmp_path):
    report = guarded_folders(places, small_tasks[:2], backbone, tmp_path / "out", Guard(tolerance=0.0, confidence=None))
    (step,) = report.steps
    assert step.task == "sky"
    assert step.largest_loss("validation").mean <= 0, "the tolerance holds where it was searched"
    bench = Workbench(backbone, small_tasks[:2], Adapter(places[0]))
    written = dict(Adapter(tmp_path / "out"))
    assert fmean(bench.outcomes(written, "fruit")) == step.validation["after"]["fruit"]
    assert fmean(bench.outcomes(written, "sky", "test")) == step.test["after"]["sky"]
    plain = add_updates(dict(Adapter(places[0])), dict(Adapter(places[1])))
    assert fmean(bench.outcomes(plain, "fruit", "test")) == step.test["unguarded"]["fruit"]
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["steps"][0]["scales"] == step.scales
    assert record["tasks"] == ["fruit", "sky"]


def test_losses_of_many_adapters_do_not_add_up(tmp_path, monkeypatch):
    """Four adapters; each of the last three costs the first task .015 of a tolerance of .02, and alone is harmless."""
    module = "layers.0.q"

    class Bench:
        def __init__(self, *_args):
            pass

        def outcomes(self, update, task, split="validation"):
            added = float(dense(update[module])) - 1
            return [0.9 - 0.015 * added if task == "one" else 0.5 + 0.1 * added]

    places = [tmp_path / f"{i}" for i in range(4)]
    for place in places:
        place.mkdir()
        write_adapter(place, {module: LowRank(torch.ones(1, 1), torch.ones(1, 1))}, rank=1)
    monkeypatch.setattr("perdure.commands.guarded_merge.Workbench", Bench)
    tasks = [
        Task(name, *[[(f"{name} {i}", "x")] for i in range(3)], labels=("x",))
        for name in ("one", "two", "three", "four")
    ]
    guard = Guard(0.02, confidence=None, bisections=6)
    steps = guarded_folders(places, tasks, "none", tmp_path / "out", guard).steps
    first = [step.totals["validation"]["one"].mean for step in steps]
    assert first[0] == pytest.approx(0.015), "taken whole"
    assert max(first) <= 0.02
    assert first[-1] == pytest.approx(sum(step.losses["test"]["one"].mean for step in steps))
    assert steps[-1].totals["test"]["two"].mean <= 0, "counted from its own entry: it gains since"
    assert steps[-1].largest_loss().mean == pytest.approx(first[-1])


def test_a_module_of_which_nothing_is_taken_is_not_written(tmp_path, monkeypatch):
    """The second adapter changes a layer of its own, which costs the first task all it has."""

    class Bench:
        def __init__(self, *_args):
            pass

        def outcomes(self, update, task, split="validation"):
            return [0.0 if "layers.1.q" in update and task == "one" else 0.5]

    for name, module in (("one", "layers.0.q"), ("two", "layers.1.q")):
        (tmp_path / name).mkdir()
        write_adapter(tmp_path / name, {module: LowRank(torch.ones(1, 1), torch.ones(1, 1))}, rank=1)
    monkeypatch.setattr("perdure.commands.guarded_merge.Workbench", Bench)
    tasks = [Task(name, *[[(f"{name} {i}", "x")] for i in range(3)], labels=("x",)) for name in ("one", "two")]
    places = [tmp_path / "one", tmp_path / "two"]
    guarded_folders(places, tasks, "none", tmp_path / "out", Guard(0.02, confidence=None))
    assert list(Adapter(tmp_path / "out")) == ["layers.0.q"]


def test_what_cannot_be_written_is_said_before_anything_is_scored(places, backbone, small_tasks, tmp_path, monkeypatch):
    monkeypatch.setattr("perdure.commands.guarded_merge.Workbench", lambda *_: pytest.fail("scores"))
    tasks, out = small_tasks[:2], tmp_path / "out"
    with pytest.raises(AdapterError, match="Rank 1000 is above"):
        guarded_folders(places, tasks, backbone, out, rank=1000)
    with pytest.raises(ConfigError, match="give one of them"):
        guarded_folders(places, tasks, backbone, out, rank=2, base=backbone["model"])
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    with pytest.raises(AdapterError, match="has no weights"):
        guarded_folders(places, tasks, backbone, out, base=tmp_path / "base")
    with pytest.raises(StoreError, match="is or contains"):
        guarded_folders(places, tasks, backbone, places[0], overwrite=True)
    with pytest.raises(ConfigError, match="'sky' has no validation examples"):
        guarded_folders(places, [tasks[0], replace(tasks[1], validation=())], backbone, out)
    out.mkdir()
    with pytest.raises(StoreError, match="already exists"):
        guarded_folders(places, tasks, backbone, out)


def test_the_metric_is_the_tasks_own(backbone, small_tasks, monkeypatch):
    """Half of an answer right: ROUGE-L counts it, accuracy would not."""
    task = replace(small_tasks[0], metric="rouge-l")
    bench = Workbench(backbone, [task], ["encoder.layer.0.attention.self.query"])
    monkeypatch.setattr(
        bench.backbone, "predict", lambda found, _labels: [Prediction(f"{e.label} more") for e in found]
    )
    assert bench.outcomes({}, "fruit") == pytest.approx([2 / 3] * 8)


def test_gain_and_loss_by_hand():
    scores = {"before": {"a": 0.8, "b": 0.5}, "after": {"a": 0.79, "b": 0.7}, "unguarded": {"a": 0.6, "b": 0.75}}
    losses = {
        split: {"a": PairedLoss(0.01, 0.1, 100), "c": PairedLoss(-0.3, 0.1, 80)} for split in ("validation", "test")
    }
    step = AddedAdapter("b", {"layer": 0.5}, scores, scores, {}, losses, 0, None)
    assert step.kept_gain() == pytest.approx(0.8)
    assert step.largest_loss() == losses["test"]["a"]
    assert step.refusal(Guard()) is None
    useless = replace(step, losses=losses, test={**scores, "unguarded": {"a": 0.8, "b": 0.5}}, scales={"layer": 0.0})
    assert useless.kept_gain() is None
    assert "an earlier task lost 0.02 or more on validation" in str(useless.refusal(Guard(0.02)))
    assert "an earlier task lost 0 or more on validation" in str(useless.refusal(Guard(0, confidence=None)))
    assert "no number of examples shows with confidence 0.95 that the earlier tasks lose nothing at all" in str(
        useless.refusal(Guard(0))
    ), "nothing was lost where they were counted"
    said = str(replace(useless, needed=300).refusal(Guard(0.02)))
    assert said.startswith("Nothing of 'b' was taken: 80 validation examples cannot show with confidence 0.95")
    assert "about 300 could" in said


def test_bad_input(places, backbone, small_tasks, tmp_path):
    with pytest.raises(ConfigError, match="2 adapters, 1 tasks"):
        guarded_folders(places, small_tasks[:1], backbone, tmp_path / "out")
    with pytest.raises(AdapterError, match=r"no module 'layers\.0\.q'"):
        guarded_folders([random_folder(tmp_path / "x", 1)] * 2, small_tasks[:2], backbone, tmp_path / "out")
    bench = Workbench(backbone, small_tasks[:1], Adapter(places[0]))
    bench.tasks["fruit"] = bench.tasks["fruit"].__class__("fruit", small_tasks[0].train, (), small_tasks[0].test)
    with pytest.raises(ConfigError, match="'fruit' has no validation examples"):
        bench.outcomes({}, "fruit")
