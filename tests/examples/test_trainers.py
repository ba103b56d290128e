"""The trainers' examples run as they stand, one month after another, and leave adapters that PEFT loads."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from perdure.adapters.folder import open_adapter
from tests.backbones.tiny import tiny_causal

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    "example,penalties", [("trainer.py", ["sign-magnitude"]), ("sft_trainer.py", ["overlap", "sparsity"])]
)
def test_months_follow_each_other(example, penalties, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = tiny_causal(tmp_path / "model", chat=True)
    for month, history in (("march", []), ("april", ["adapters/march"])):
        given = ["--out", f"adapters/{month}", "--history", *history]
        monkeypatch.setattr(sys, "argv", [example, str(model), *given])
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    april = open_adapter("adapters/april")
    assert april["model.layers.0.self_attn.v_proj"].B.any()
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), "adapters/april")
    printed = capsys.readouterr().out
    assert all(f"'penalty/{name}'" in printed and f"'share/{name}'" in printed for name in penalties)
