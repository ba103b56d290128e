"""How much of a model an adapter reaches, counted by hand; and where it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.breadth.architectures import config as tiny_config
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, BertConfig, BertModel

from perdure.commands.learn import learn
from perdure.commands.show import describe_run, run_lines
from perdure.config.lora_settings import LoraSettings
from perdure.state.reopen import initial_config, learner_config
from perdure.state.store import Store
from perdure.training.coverage import coverage_line, coverage_warnings
from perdure.training.lora import AdaptedModel
from perdure.training.reporter import Reporter
from tests.contract.runs import SETTINGS


def adapted(model: nn.Module, *targets: str) -> AdaptedModel:
    return AdaptedModel(model, LoraSettings(rank=2, targets=targets), ())


def test_query_and_value_of_a_bert_by_hand() -> None:
    """A layer: query, key, value, output of 8 x 8 and two of 8 x 16, 4 x 64 + 2 x 128 = 512; the pooler 64 more."""
    config = BertConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=99)
    found = adapted(BertModel(config), "query", "value").coverage()
    assert (found.modules, found.layers, found.of_layers) == (6, 3, 3)
    assert found.share == 3 * 2 * 64 / (3 * 512 + 64)
    assert coverage_warnings(found) == []
    assert coverage_line(found.as_json()) == "adapts 6 modules in 3 of 3 layers, 24 % of the matrix parameters"
    first = adapted(BertModel(config), "layer.1.attention.self.query").coverage()
    assert first.bare == ("encoder.layer.0", "encoder.layer.2")
    assert coverage_line(first.as_json()) == "adapts 1 module in 1 of 3 layers, 4 % of the matrix parameters"
    assert "2 of 3 layers are not adapted (encoder.layer.0, encoder.layer.2)" in coverage_warnings(first)[0]


def test_a_net_without_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    assert (
        coverage_line(adapted(Net(), "second").coverage().as_json()) == "adapts 1 module, 33 % of the matrix parameters"
    )


@pytest.mark.parametrize(
    ("name", "layers", "experts"),
    [
        ("granitemoehybrid", (1, 2), "experts.down_proj, experts.gate_up_proj"),
        ("lfm2", (1, 2), ""),
        ("qwen3_next", (1, 2), "experts.down_proj, experts.gate_up_proj"),
        ("mixtral", (2, 2), "experts.down_proj, experts.gate_up_proj"),
        ("gemma3n_text", (2, 2), ""),
        ("llama", (2, 2), ""),
    ],
)
def test_hybrids_and_mixtures_say_what_is_left(name: str, layers: tuple[int, int], experts: str) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("causal", name))
    found = adapted(model, "q_proj", "v_proj").coverage()
    assert (found.layers, found.of_layers) == layers
    lines = coverage_warnings(found)
    assert len(lines) == (layers[0] < layers[1]) + bool(experts)
    if experts:
        assert f"lora.target_parameters=[{experts}]" in lines[-1]
        assert found.share + found.experts_share < 1


def test_lists_side_by_side_are_the_same_layers() -> None:
    """XLM's attentions and feed-forwards."""
    found = adapted(AutoModel.from_config(tiny_config("encoder", "xlm")), "q_lin", "v_lin").coverage()
    assert (found.layers, found.of_layers, found.bare) == (2, 2, ())


class Notes(Reporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_says_it_first_records_it_and_show_prints_it(
    small_tasks: Any, encoder_folder: Path, tmp_path: Path
) -> None:
    """The default targets are recorded as they resolved, and are those of the run from then on."""
    notes = Notes()
    backbone = {"kind": "encoder", "model": str(encoder_folder)}
    learn(out=tmp_path / "run", tasks=small_tasks[:1], backbone=backbone, method="inc-lora", report=notes, **SETTINGS)
    store = Store(tmp_path / "run")
    about = store.about["adapted"]
    assert about["targets"] == ["query", "value"]
    assert notes.lines[0] == coverage_line(about)
    assert coverage_line(about) in [*run_lines(describe_run(tmp_path / "run"))]
    assert initial_config(store).lora.targets == ()
    assert learner_config(store).lora.targets == ("query", "value")
