"""diagnose, merge and export from the command line, on small folders."""

import json
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from safetensors.torch import save_file
from typer.testing import CliRunner

from perdure.adapters.folder import Adapter
from perdure.cli.adapters import add_commands
from perdure.errors import AdapterError, ConfigError, StoreError
from perdure.merging.linear import average_updates, sum_updates
from perdure.ops.lowrank import dense
from tests.adapter_cases import random_folder
from tests.merging.merge_cases import assert_same, gained_sums


@pytest.fixture
def places(tmp_path):
    return [str(random_folder(tmp_path / name, seed)) for seed, name in enumerate(("news", "mail"))]


def perdure(*arguments):
    """Output of the command; a user's error comes back as what it is."""
    app = typer.Typer()
    add_commands(app)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_diagnose_in_words_in_json_and_as_a_page(places, tmp_path):
    said = perdure("diagnose", *places, "--html", tmp_path / "page.html")
    assert "news and mail" in said
    assert "nuclear norm" in said
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(StoreError, match="already exists"):
        perdure("diagnose", *places, "--html", tmp_path / "page.html")
    perdure("diagnose", *places, "--html", tmp_path / "page.html", "--overwrite")
    found = json.loads(perdure("diagnose", *places, "--json", "--top", 0.5, "--sample", 1.0))
    assert found["looking"] == {"top": 0.5, "threshold": 0.1, "rows": 1.0, "seed": 0}
    assert set(found["pairs"][0]["modules"]) == {"layers.0.q", "layers.1.v"}
    assert found["sentences"][0].startswith("news and mail")


def test_diagnose_against_the_sum_of_the_earlier(places, tmp_path):
    third = random_folder(tmp_path / "third", 7)
    found = json.loads(perdure("diagnose", *places, third, "--history", "--json"))
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("news", "mail"), ("news + mail", "third")]


def test_diagnose_says_where_it_cannot_write(places, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match="Cannot create folder"
    ):  # before the adapters, which are not there, are looked at
        perdure("diagnose", "none", "nor", "--html", tmp_path / "file" / "page.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match="is a folder"):
        perdure("diagnose", *places, "--html", tmp_path / "folder", "--overwrite")
    perdure("diagnose", *places, "--html", tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").is_file()


def test_diagnose_replaces_nothing_that_it_reads(places):
    weights = Path(places[0]) / "adapter_model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(StoreError, match="is or lies inside the input"):
        perdure("diagnose", *places, "--html", weights, "--overwrite")
    assert weights.read_bytes() == before


def test_diagnose_refuses_adapters_saved_under_two_model_classes(places, tmp_path):
    """Their names have nothing in common, their weights all."""
    whole = random_folder(tmp_path / "whole", 7, shapes={"model.layers.0.q": (12, 8)})
    with pytest.raises(AdapterError, match="different model classes"):
        perdure("diagnose", places[0], whole)


def test_merge(places, tmp_path):
    assert "it is exact" in perdure("merge", *places, "--rule", "sum", "--out", tmp_path / "out")
    assert_same(dict(Adapter(tmp_path / "out")), sum_updates([Adapter(place) for place in places]))
    with pytest.raises(StoreError, match="already exists"):
        perdure("merge", *places, "--rule", "sum", "--out", tmp_path / "out")
    options = ("--rule", "sum", "--dtype", "bf16", "--out", tmp_path / "narrow")
    assert "it is exact except for rounding to bf16." in perdure("merge", *places, *options)
    options = ("--rule", "average", "--set", "weights=[3, 1]", "--out", tmp_path / "out", "--overwrite", "--json")
    assert json.loads(perdure("merge", *places, *options))["rank"] == 4
    assert_same(dict(Adapter(tmp_path / "out")), average_updates([Adapter(place) for place in places], [3, 1]))


def test_merge_from_a_file(places, tmp_path):
    text = f"rule: ties\ndensity: 0.5\nrank: 5\ndtype: bf16\nadapters: [news, {{path: {places[1]}, weight: 2}}]\n"
    (tmp_path / "merge.yaml").write_text(text + "overrides: [{modules: '*.v', rule: sum}]\n")
    said = perdure("merge", "--file", tmp_path / "merge.yaml", "--out", tmp_path / "out")
    assert "of the energy" in said
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert record["settings"]["weights"] == [1.0, 2.0]
    assert record["energies"]["layers.1.v"] == pytest.approx(1)
    with pytest.raises(ConfigError, match="leave --rule, --set and --like out"):
        perdure("merge", "--file", tmp_path / "merge.yaml", "--rule", "sum", "--out", tmp_path / "x")
    with pytest.raises(ConfigError, match="not twice"):
        perdure("merge", *places, "--file", tmp_path / "merge.yaml", "--out", tmp_path / "x")
    (tmp_path / "merge.yaml").write_text("rule: sum\ndtype: int4\nadapters: [news]\n")
    with pytest.raises(ConfigError, match="dtype is one of fp32, bf16, fp16"):
        perdure("merge", "--file", tmp_path / "merge.yaml", "--out", tmp_path / "x")


def test_merge_one_by_one_and_export(places, tmp_path):
    perdure("merge", places[0], "--into", tmp_path / "state", "--rule", "average")
    said = perdure("merge", places[1], "--into", tmp_path / "state", "--weight", 3)
    assert "now holds 2 adapter(s), merged by average" in said
    report = json.loads(perdure("export", tmp_path / "state", "--as", "adapter", "--out", tmp_path / "out", "--json"))
    assert report["rank"] == 4
    assert_same(dict(Adapter(tmp_path / "out")), average_updates([Adapter(place) for place in places], [1, 3]))


def test_merge_by_covariance_gain_from_files(places, tmp_path):
    generator = torch.Generator().manual_seed(0)
    moments = []
    for name in ("news", "mail"):
        inputs = {m: torch.randn(20, d.shape[1], generator=generator) for m, d in Adapter(places[0]).items()}
        moments.append({module: (x.mT @ x).contiguous() for module, x in inputs.items()})
        save_file(moments[-1], tmp_path / f"{name}.safetensors")
    files = [option for name in ("news", "mail") for option in ("--moments", tmp_path / f"{name}.safetensors")]
    perdure("merge", *places, "--rule", "covariance-gain", *files, "--out", tmp_path / "out")
    expected = gained_sums([dict(Adapter(place)) for place in places], moments)
    for module, delta in Adapter(tmp_path / "out").items():
        torch.testing.assert_close(dense(delta), dense(expected[module]), rtol=1e-4, atol=1e-4)
    save_file({"layers.0.q": torch.ones(2, 3)}, tmp_path / "news.safetensors")
    with pytest.raises(AdapterError, match=r"'layers\.0\.q' is not a finite square matrix"):
        perdure("merge", *places, "--rule", "covariance-gain", *files, "--out", tmp_path / "x")
    for wrong in (torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 3.0]])):
        save_file({"layers.0.q": wrong}, tmp_path / "news.safetensors")
        with pytest.raises(AdapterError, match=r"news\.safetensors: 'layers\.0\.q' is not a second moment"):
            perdure("merge", *places, "--rule", "covariance-gain", *files, "--out", tmp_path / "x")


def test_moments_are_measured_as_the_adapters_were_trained(places, tmp_path, monkeypatch):
    """Each by itself, or with `against: earlier` on top of those before."""
    present = []

    class Bench:
        def __init__(self, *_args):
            pass

        def moments(self, _task, update):
            present.append(update)
            return {module: torch.eye(delta.shape[1]) for module, delta in update.items()}

    monkeypatch.setattr("perdure.training.workbench.Workbench", Bench)
    tasks = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in ("news", "mail")])
    monkeypatch.setattr("perdure.tasks.suites.load_suite", lambda *_args, **_kwargs: tasks)
    options = ("--rule", "covariance-gain", "--tasks", "small", "--backbone", "none")
    perdure("merge", *places, *options, "--out", tmp_path / "others")
    perdure("merge", *places, *options, "--set", "against=earlier", "--out", tmp_path / "earlier")
    news, mail = (dict(Adapter(place)) for place in places)
    for found, expected in zip(present, (news, mail, news, sum_updates([news, mail])), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--rule", "sum"), "No output folder"),
        (("--rule", "guardd", "--out", "x"), "Did you mean 'guarded'"),
        (("--out", "x"), "No rule: give one"),
        (("--rule", "guarded", "--out", "x"), "Give --tasks"),
        (("--rule", "guarded", "--out", "x", "--set", "density=1"), "it has no setting 'density'"),
        (("--rule", "sum", "--into", "state"), "give exactly one"),
        (("--rule", "covariance-gain", "--out", "x"), "input second moments of every adapter"),
        (("--rule", "sum", "--out", "x", "--moments", "y"), "--moments is for covariance-gain; "),
        (("--rule", "sum", "--out", "x", "--order", "y"), "--order is for covariance-gain or guarded"),
        (("--rule", "guarded", "--out", "x", "--moments", "y"), "leave --moments out"),
        (("--rule", "covariance-gain", "--out", "x", "--moments", "y", "--tasks", "z"), "leave --tasks out"),
        (("--rule", "covariance-gain", "--out", "x", "--moments", "y", "--kind", "causal"), "leave --kind out"),
        (("--rule", "sum", "--out", "x", "--tasks", "y"), "--tasks is for covariance-gain or guarded"),
        (("--rule", "sum", "--out", "x", "--tolerance", "0.1"), "--tolerance and --confidence are for --rule guarded"),
        (("--rule", "sum", "--out", "x", "--weight", "2"), "--weight and --again are for --into"),
        (("--rule", "sum", "--out", "x", "--set", "weights"), "is not a setting"),
        (("--rule", "max-magnitude", "--out", "x"), "is not low rank"),
    ],
)
def test_options_that_do_not_go_together(places, tmp_path, options, reason, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        perdure("merge", *places, *options)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--out", "x"),
        ("--base", "x"),
        ("--rank", "2"),
        ("--rank", "0"),
        ("--tolerance", "0"),
        ("--file", "x"),
        ("--order", "x"),
        ("--kind", "causal"),
        ("--overwrite",),
    ],
)
def test_options_without_meaning_for_a_state(places, tmp_path, option):
    with pytest.raises(ConfigError, match=f"{option[0]} has no meaning with --into"):
        perdure("merge", places[0], "--into", tmp_path / "state", "--rule", "sum", *option)


def test_a_base_by_folder_by_name_and_from_a_hub(places, tmp_path, monkeypatch):
    import huggingface_hub

    base = tmp_path / "base"
    base.mkdir()
    shapes = {module: delta.shape for module, delta in Adapter(places[0]).items()}
    save_file({f"{module}.weight": torch.zeros(shape) for module, shape in shapes.items()}, base / "model.safetensors")
    (base / "config.json").write_text("{}")
    perdure("merge", *places, "--rule", "sum", "--base", base, "--out", tmp_path / "one")

    def fetched(_name, *, allow_patterns, **_options):
        for file in ("qwen.tiktoken", "2_Dense/pytorch_model.bin", "additional_chat_templates/tool_use.jinja"):
            assert any(fnmatch(file, pattern) for pattern in allow_patterns), file
        assert not any(fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    perdure("merge", *places, "--rule", "sum", "--base", "owner/base", "--out", tmp_path / "two")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]

    def offline(*_args, **_kwargs):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(AdapterError, match="'owner/base' is not a folder here and could not be fetched"):
        perdure("diagnose", *places, "--base", "owner/base")
    with pytest.raises(ConfigError, match="nothing-here"):
        perdure("merge", *places, "--rule", "sum", "--base", "nothing-here", "--out", tmp_path / "three")


def test_a_state_keeps_its_own_settings(places, tmp_path):
    perdure("merge", places[0], "--into", tmp_path / "state", "--rule", "average")
    with pytest.raises(ConfigError, match="--set and --like belong to --rule"):
        perdure("merge", places[1], "--into", tmp_path / "state", "--set", "density=0.3")


def test_guarded_is_not_kept_in_a_state(places, tmp_path):
    with pytest.raises(ConfigError, match="cannot be kept in a state"):
        perdure("merge", places[0], "--into", tmp_path / "state", "--rule", "guarded")


def test_guarded(tmp_path, encoder_folder, small_tasks, monkeypatch):
    from perdure.adapters.folder import write_adapter
    from perdure.ops.lowrank import LowRank
    from perdure.tasks.suites import Suite

    generator = torch.Generator().manual_seed(0)
    module = "encoder.layer.1.attention.self.value"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        factors = LowRank(torch.randn(2, 32, generator=generator), torch.randn(32, 2, generator=generator))
        write_adapter(tmp_path / name, {module: factors}, rank=2)
    suite = Suite("small", 1, "first", tuple(small_tasks[:2]), ())
    monkeypatch.setattr("perdure.tasks.suites.load_suite", lambda *_args, **_kwargs: suite)
    options = ("--tasks", "small", "--backbone", encoder_folder, "--kind", "encoder", "--tolerance", 0.2)
    said = perdure(
        "merge", tmp_path / "one", tmp_path / "two", "--rule", "guarded", *options, "--out", tmp_path / "out"
    )
    assert "on validation (" in said
    assert "validation examples cannot show with confidence 0.95" in said or "of the unguarded gain" in said
    assert list(Adapter(tmp_path / "out")) == [module]
    text = f"rule: guarded\ntolerance: 0.2\nadapters: [one, two]\ntasks: small\nbackbone: {encoder_folder}\nkind: encoder\n"
    (tmp_path / "merge.yaml").write_text(text)
    again = perdure("merge", "--file", tmp_path / "merge.yaml", "--out", tmp_path / "same")
    steps = [next(line for line in text.splitlines() if "on validation (" in line) for text in (said, again)]
    assert steps[0] == steps[1]
    for wrong, reason in (("density: 1", "no setting 'density'"), ("tolerance: much", "is a number")):
        (tmp_path / "merge.yaml").write_text(f"rule: guarded\n{wrong}\nadapters: [one, two]\n")
        with pytest.raises(ConfigError, match=reason):
            perdure("merge", "--file", tmp_path / "merge.yaml", "--out", tmp_path / "x")
    (tmp_path / "merge.yaml").write_text("rule: guarded\nadapters: [one, {path: two, weight: 2}]\n")
    with pytest.raises(ConfigError, match="no weights and no overrides"):
        perdure("merge", "--file", tmp_path / "merge.yaml", "--out", tmp_path / "x")
