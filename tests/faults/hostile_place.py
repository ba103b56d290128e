"""The small place that tests.faults.hostile breaks: models, data, settings, runs, adapters, a merge state, a sweep's records."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.adapter_cases import random_folder
from tests.backbones.tiny import tiny_causal, tiny_encoder
from tests.contract.runs import SETTINGS
from tests.own_files import write_jsonl, write_own_files

SHAPES = {
    f"model.layers.{i}.self_attn.{name}": (rows, 32) for i in (0, 1) for name, rows in (("q_proj", 32), ("v_proj", 16))
}


def made(folder: Path) -> Path:
    """The place, made in `folder` where the cases will run (runs know absolute paths), and copied beside; kept if it is there."""
    pristine, place, outside = folder / "pristine", folder / "around" / "place", folder / "around" / "outside"
    if pristine.is_dir():
        return pristine
    outside.mkdir(parents=True)
    (outside / "canary").write_text("not perdure's")
    place.mkdir()
    before = Path.cwd()
    os.chdir(place)
    try:
        _fill(place)
    finally:
        os.chdir(before)
    shutil.copytree(place, pristine)
    return pristine


def _fill(place: Path) -> None:
    from perdure.commands.learn import run_config
    from perdure.commands.merge import Request, run_merge
    from perdure.config.run_config import load_config

    encoder = tiny_encoder(place / "encoder")
    _pooled(encoder)
    write_own_files(place, Path("encoder"))
    rows = [{"text": f"{('waves', 'sand')[i % 2]} and {i}", "label": "ab"[i % 2]} for i in range(40)]
    write_jsonl(place / "data/sea.jsonl", rows)
    write_jsonl(place / "in.jsonl", rows[:3])
    sea = {"name": "sea", "train": "data/sea.jsonl", "labels": {"a": "waves", "b": "sand"}}
    _yaml(place / "sea.yaml", sea)
    _yaml(place / "suite.yaml", {"name": "mine", "tasks": {"sea": sea}, "orders": {"one": ["sea"]}})
    settings = {**SETTINGS, "tasks": [sea], "backbone": {"kind": "encoder", "model": "./encoder", "max_length": 32}}
    _yaml(place / "sweep.yaml", {"name": "small", "settings": settings, "methods": {"inc-lora": {}, "ps-lora": {}}})
    run_config(load_config(place / "config.yaml"), place / "run")
    _stop_inside(place / "stopped")
    tiny_causal(place / "base")
    _language(place)
    for seed, name in enumerate(("one", "two"), start=1):
        random_folder(place / name, seed, shapes=SHAPES, base="base")
    _yaml(place / "merge.yaml", {"rule": "ties", "density": 0.5, "adapters": ["one", {"path": "two", "weight": 0.5}]})
    run_merge(Request(adapters=("one",), rule="ties", into=place / "state"))
    _records(place)


def _yaml(path: Path, value: Any) -> None:
    path.write_text(yaml.safe_dump(value))


def _pooled(encoder: Path) -> None:
    """As a folder of sentence-transformers says how it pools."""
    (encoder / "1_Pooling").mkdir()
    kind = "sentence_transformers.models"
    steps = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"{kind}.{name}"} for i, (path, name) in enumerate(steps)
    ]
    (encoder / "modules.json").write_text(json.dumps(listed))
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (encoder / "1_Pooling/config.json").write_text(json.dumps(pooling))


def _language(place: Path) -> None:
    config = yaml.safe_load((place / "config.yaml").read_text())
    backbone = {"kind": "causal", "model": "base", "max_length": 64}
    _yaml(place / "llm.yaml", config | {"backbone": backbone, "method": "inc-lora", "tasks": config["tasks"][:1]})


def _stop_inside(run: Path) -> None:
    """A run stopped inside its second task, with a checkpoint there."""
    import perdure.state.record as record
    from perdure.commands.learn import run_config
    from perdure.config.run_config import load_config

    real, steps = record.StageRecord.step, []

    def step(self: Any, *args: Any) -> Any:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return real(self, *args)

    record.StageRecord.step = step  # type: ignore[method-assign]
    try:
        run_config(load_config("config.yaml", {"training.checkpoint_minutes": 1e-9}), run)
    except KeyboardInterrupt:
        pass
    finally:
        record.StageRecord.step = real  # type: ignore[method-assign]
    assert (run / "unfinished/manifest.json").is_file()


def _records(place: Path) -> None:
    """What a sweep of two methods keeps of its runs."""
    from perdure.files.durable import write_json
    from perdure.state.scores import read_scores
    from perdure.state.store import Store
    from perdure.sweeps.record import run_record

    kept = run_record(Store(place / "run"), read_scores(place / "run"))
    for method in ("ewc", "ps-lora"):
        about = {"id": f"{method}-0", "method": method, "varied": {}, "sequence": {}, "seconds": 1.0}
        write_json(place / "records/records" / f"{method}-0.json", {**about, **kept})
