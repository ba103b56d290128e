"""Inits that offset the base: nothing has changed at step 0 on any kind of backbone, and exported adapters need no offset."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel

from perdure.adapters.folder import write_adapter
from perdure.backbones import load_backbone
from perdure.backbones.base import Backbone
from perdure.config.lora_settings import LoraSettings
from perdure.errors import UnmetNeed
from perdure.methods.contract.build import build_method, check_needs
from perdure.methods.contract.context import Need
from perdure.methods.contract.parts import Init, WeightPenalty
from perdure.methods.contract.past import Past
from perdure.methods.ella import PastEnergy
from perdure.methods.ewc import FisherPenalty
from perdure.methods.l2 import SquaredNorm
from perdure.methods.lora_ga import LoraGa
from perdure.methods.loram import Loram
from perdure.methods.n_lora import Sparsity
from perdure.methods.output_drift import OutputDrift
from perdure.methods.ps_lora import SignMagnitude
from perdure.methods.score_drift import ScoreDrift
from perdure.methods.slice import Slice
from perdure.methods.slice_free import SliceFree
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.tasks.task import Stage, Task
from perdure.training.context import StageContext
from perdure.training.lora import AdaptedModel
from tests.backbones.tiny import tiny_causal, tiny_encoder, tiny_images, tiny_seq2seq, tiny_vision
from tests.conftest import small_task

SMALL: dict[str, Any] = {"batches": 2, "batch_size": 4}
INITS: dict[str, Callable[[], Init]] = {
    "slice": lambda: Slice(**SMALL),
    "slice sketched": lambda: Slice(**SMALL, storage="sketched"),
    "slice-free": lambda: SliceFree(**SMALL),
    "lora-ga": lambda: LoraGa(**SMALL),
    "loram": lambda: Loram(),
}
MODELS = {"encoder": tiny_encoder, "causal": tiny_causal, "seq2seq": tiny_seq2seq, "vision": tiny_vision}
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "dark": (25, 25, 25), "bright": (225, 225, 225)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MODELS.items()}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Task]:
    found = tiny_images(tmp_path_factory.mktemp("images"), COLOURS, each=5)
    tasks = []
    for name, labels in (("colours", ("red", "green")), ("light", ("dark", "bright"))):
        rows = [(str(path), label) for label in labels for path in found[label]]
        tasks.append(Task(name, train=rows, test=rows[:2], labels=dict.fromkeys(labels, "")))
    return tasks


def second_stage(folder: Path, kind: str, tasks: list[Task], init: Init) -> tuple[StageContext, Backbone]:
    """At the start of task 1: everything of task 0 is in the buffer (and its statistics in the init)."""
    backbone = load_backbone({"kind": kind, "model": str(folder)})
    backbone.prepare(tasks)
    model = AdaptedModel(backbone.model, LoraSettings(rank=2, alpha=4), backbone.default_targets)
    names = {task.name: task for task in tasks}

    def stage(index: int, past: Past) -> StageContext:
        buffer = {task.name: task.train for task in tasks[:index]}
        return StageContext(
            Stage(tasks[index].name, (tasks[index],)), index, past, buffer, model, backbone, names, seed=0
        )

    init.after_task(stage(0, Past()), {})
    return stage(1, Past(stages=(tasks[0].name,))), backbone


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", INITS)
def test_nothing_has_changed_at_step_0(kind: str, name: str, folders: dict[str, Path], images: list[Task]) -> None:
    tasks = images if kind == "vision" else [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]
    init = INITS[name]()
    ctx, backbone = second_stage(folders[kind], kind, tasks, init)
    batch = backbone.collate(tasks[1].train[:6])
    with torch.no_grad():
        before = backbone.forward(batch).loss
    start = init.start(ctx)
    ctx.model.start(start)
    with torch.no_grad():
        after = backbone.forward(batch).loss
        rounding = 1e-5 * max(1.0, float(before))  # of the offset base, relative to a loss of up to 11
        assert abs(float(before - after)) < rounding
        ctx.model.enable(False)  # the base alone has changed: the offset is really there
        assert float(backbone.forward(batch).loss) != float(before)
    assert all(pair.A.abs().max() > 0 and pair.B.abs().max() > 0 for pair in start.factors.values())


def memories(factors: Mapping[str, Factors]) -> dict[type, dict[str, torch.Tensor]]:
    """For each penalty that remembers: a past in which every position and input counts."""
    generator = torch.Generator().manual_seed(0)

    def positive(size: int) -> torch.Tensor:
        root = torch.randn(size, size, generator=generator)
        return root @ root.mT

    C = {module: positive(pair.shape[1]) for module, pair in factors.items()}
    F = {module: positive(pair.shape[0]) for module, pair in factors.items()}
    energies = {f"energy.{module}": torch.tensor(2.0) for module in factors}
    return {
        FisherPenalty: {module: torch.rand(pair.shape, generator=generator) for module, pair in factors.items()},
        OutputDrift: {f"moment.{module}": moment for module, moment in C.items()} | energies,
        ScoreDrift: {f"inputs.0.{m}": C[m] for m in C} | {f"outputs.0.{m}": F[m] for m in F},
    }


VANISHING: dict[str, Callable[[], WeightPenalty]] = {
    "l2": lambda: SquaredNorm(weight=1.0),
    "sign-magnitude": lambda: SignMagnitude(weight=1.0),
    "sign-magnitude scalar": lambda: SignMagnitude(weight=1.0, reading="scalar"),
    "sign-magnitude reference": lambda: SignMagnitude(weight=1.0, engine="reference"),
    "sparsity": lambda: Sparsity(weight=1.0),
    "past-energy": lambda: PastEnergy(weight=1.0),
    "fisher": lambda: FisherPenalty(weight=1.0),
    "output-drift": lambda: OutputDrift(weight=1.0),
    "score-drift": lambda: ScoreDrift(weight=1.0),
}
"""All but those that do not vanish where the update is 0: sign-only, overlap and factor-norm."""


@pytest.mark.parametrize("name", INITS)
def test_penalties_are_exactly_zero_at_step_0(name: str, folders: dict[str, Path]) -> None:
    """In fp32, to the last bit: rounding noise would have signs for l1, and a direction for `gradient_share`."""
    tasks = [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]
    init = INITS[name]()
    ctx, _ = second_stage(folders["encoder"], "encoder", tasks, init)
    ctx.model.start(init.start(ctx))
    factors = ctx.model.factors()
    assert all(not pair.rows(0, pair.shape[0]).any() for pair in factors.values())
    generator = torch.Generator().manual_seed(1)
    old = {module: torch.randn(pair.shape, generator=generator) for module, pair in factors.items()}
    past = Past(stages=("fruit",), total=old, deployed=old)
    moved = {module: replace(pair, A=pair.A * 1.01) for module, pair in factors.items()}
    for make in VANISHING.values():
        part = make()
        part.load(memories(factors).get(type(part), {}))
        value, grads = part.values_and_grads(factors, past)
        assert value == 0
        assert all(not grad.any() for pair in grads.values() for grad in pair)
        assert part.values_and_grads(moved, past)[0] > 0


@pytest.mark.parametrize("name", ["slice", "lora-ga"])
def test_the_exported_adapter_is_right_on_a_fresh_untouched_base(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Loaded by PEFT alone, at twice the rank: the same features as the trained model; a plain export of A and B is not."""
    tasks = [small_task("fruit", "apples", "pears"), small_task("sky", "sun", "moon")]
    init = INITS[name]()
    ctx, backbone = second_stage(folders["encoder"], "encoder", tasks, init)
    ctx.model.start(init.start(ctx))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in ctx.model.modules.values():  # as if trained
            for factor in (module.A, module.B):
                factor.add_(torch.randn(factor.shape, generator=generator), alpha=0.1 * float(factor.std()))
    batch = backbone.collate(tasks[1].train[:4])
    with torch.no_grad():
        trained = backbone.model(**batch.inputs).last_hidden_state
    factors = ctx.model.factors()
    update = {module: pair.update() for module, pair in factors.items()}
    plain = {module: LowRank(pair.A, pair.B * pair.scaling) for module, pair in factors.items()}
    for exported, folder, close in ((update, tmp_path / "a", True), (plain, tmp_path / "b", False)):
        folder.mkdir()
        write_adapter(folder, exported, rank=4)
        fresh = PeftModel.from_pretrained(AutoModel.from_pretrained(folders["encoder"]), str(folder)).eval()
        with torch.no_grad():
            answered = fresh(**batch.inputs).last_hidden_state
        assert (float((answered - trained).abs().max()) < 1e-4) == close


def test_a_quantised_base_is_refused_before_training() -> None:
    offered = {Need.TRAINING_DATA, Need.OLD_EXAMPLES}  # what a run on a 4-bit base offers
    for name in ("slice", "slice-free", "lora-ga", "loram"):
        row = {"kind": "buffer"} if name == "slice" else None
        method = build_method(
            {"name": name, "init": {"kind": name}, "consolidate": {"kind": "sum"}, "penalties": {}, "step_rule": None,
             "replay": row, "stream": "one-by-one"}
        )  # fmt: skip
        with pytest.raises(UnmetNeed, match="stored dense"):
            check_needs(method, offered)
