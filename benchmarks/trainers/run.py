"""Every preset in every trainer that people use, on a tiny model: two tasks after each other, or the refusal.

    PYTHONPATH=. python benchmarks/trainers/run.py
    make tables

transformers' Trainer on a causal model and on an encoder-decoder (with the inputs that DataCollatorForSeq2Seq makes), TRL's SFT,
DPO, KTO, GRPO, RLOO and Reward trainers. Each cell trains two steps of a first task, saves it, attaches to a second task with the
first as history, and trains two steps again. It works if attaching refuses nothing, the second adapter is finite and moved,
and every weight penalty was logged.
A preset that is in the record is not tried again; tests/integrations/test_every_trainer.py tries some anew and compares.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tests.backbones.tiny import tiny_causal, tiny_seq2seq
from tests.integrations.test_encoder_decoder import rows, shifted
from tests.integrations.test_references import ROWS, trainer
from tests.integrations.trainers import peft_model, plain_trainer
from transformers import AutoModelForSeq2SeqLM

from perdure.errors import PerdureError
from perdure.integrations import Continual
from perdure.methods.contract.build import part_class
from perdure.methods.table import PRESETS

RECORD = Path(__file__).parent / "record.json"
KINDS = ("Trainer", "Seq2Seq", "SFT", "DPO", "KTO", "Reward", "GRPO", "RLOO")


def folders(place: Path) -> dict[str, Path]:
    """The tiny models, by what they are."""
    return {"causal": tiny_causal(place / "causal"), "seq2seq": tiny_seq2seq(place / "seq2seq")}


def made(kind: str, models: dict[str, Path], place: Path) -> tuple[Any, list[Any]]:
    """A trainer of this kind, two steps long, and rows of an old task as its collator takes them."""
    if kind == "Seq2Seq":
        given: list[Any] = rows((3, 5, 4, 6), (7, 2, 3, 4))
        whole = AutoModelForSeq2SeqLM.from_pretrained(models["seq2seq"])
        model: Any = get_peft_model(whole, LoraConfig(r=2, lora_alpha=4, target_modules=["q", "v"]))
        return plain_trainer(model, given, place, shifted, max_steps=2, per_device_train_batch_size=2), given
    if kind == "Trainer":
        tokens = torch.arange(5, 25).view(4, 5)
        given = [{"input_ids": row, "labels": row} for row in tokens]
        model = peft_model(models["causal"], torch.float32)
        return plain_trainer(model, given, place, stacked, max_steps=2, per_device_train_batch_size=2), given
    one = trainer(kind, models["causal"], place)
    return one, [one.train_dataset[i] for i in range(2)] if kind not in ("GRPO", "RLOO") else ROWS[kind][:2]


def stacked(chosen: Any) -> dict[str, torch.Tensor]:
    """Rows of one length."""
    return {name: torch.stack([row[name] for row in chosen]) for name in chosen[0]}


def outcome(kind: str, preset: str, models: dict[str, Path]) -> str:
    """'' if it works, else why it is refused: the message's first sentence."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place, method = Path(folder), small(preset)
        try:
            old: dict[str, Any] = {}
            history: list[Path] = []
            for name in ("march", "april"):
                one, kept = made(kind, models, place / name)
                continual = Continual(method, history=history, old_examples=old if needs_old(preset) else None)
                continual.attach(one)
                one.train()
                continual.save(place / "saved" / name)
                old, history = {name: kept}, [place / "saved" / name]
        except PerdureError as error:
            return str(error).partition(". ")[0]
        factors = continual.model.factors().values()
        logged = {key for log in one.state.log_history for key in log}
        wanted = {f"penalty/{penalty}" for penalty in PRESETS[preset].penalties}
        if not all(torch.isfinite(pair.A).all() and torch.isfinite(pair.B).all() and pair.B.any() for pair in factors):
            return "FAILED: the adapter is not finite, or did not move"
        return f"FAILED: not logged: {sorted(wanted - logged)}" if wanted - logged else ""


def small(preset: str) -> dict[str, Any]:
    """The preset, with measurements that four rows suffice for."""
    row = PRESETS[preset].composition()
    sizes = {"batches": 2, "batch_size": 2, "replay_batches": 1, "examples": 2}

    def fitting(role: Any, settings: dict[str, Any]) -> dict[str, Any]:
        fields = part_class(role, settings["kind"]).model_fields
        return {**settings, **{name: size for name, size in sizes.items() if name in fields}}

    penalties = {name: fitting("penalty", own) for name, own in row["penalties"].items()}
    parts = {role: fitting(role, row[role]) for role in ("init", "consolidate", "step_rule") if row[role]}
    return {"preset": preset, "penalties": penalties, **parts}


def needs_old(preset: str) -> bool:
    """Whether the preset uses old examples where a trainer has them."""
    replay = PRESETS[preset].replay
    return replay is not None and replay.get("use") == "init-only"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        models = folders(Path(folder))
        cells = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
        for preset in PRESETS:
            known = cells.get(preset, {})
            if missing := [kind for kind in KINDS if kind not in known]:
                found = known | {kind: outcome(kind, preset, models) for kind in missing}
                cells[preset] = {kind: found[kind] for kind in KINDS}
                RECORD.write_text(json.dumps(cells, indent=1) + "\n")


if __name__ == "__main__":
    main()
