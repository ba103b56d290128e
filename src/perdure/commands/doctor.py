"""What works for a model: loads it as a run would, trains one step on a probe, and says what holds. `perdure doctor MODEL`."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from perdure.backbones import backbone_kind, load_backbone
from perdure.backbones.base import Backbone, Batch
from perdure.backbones.memory import memory_explained
from perdure.backbones.ranking import NOISE, model_dtype
from perdure.config.run_config import RunConfig, load_config
from perdure.errors import ConfigError, PerdureError
from perdure.methods.contract.parts import Start
from perdure.ops.factors import Factors
from perdure.ops.lowrank import LowRank
from perdure.tasks.task import Example, Task
from perdure.training.coverage import coverage_line, coverage_warnings
from perdure.training.lora import AdaptedModel
from perdure.training.targets import sharing_modules

Verdict = Literal["ok", "note", "no"]
LARGEST_DIFFERENCE = 1e-5
"""Between the scores of the adapter and of the update folded into the base, as a share of the largest score, in fp32."""
TEXTS = {
    "good": ("a fine day", "the best meal that I had in many years, and with friends", "well done"),
    "bad": ("rain all day long, and thunder in the evening", "cold soup", "a poor and greasy dinner"),
}
LABELS = {"good": "good", "bad": "not good at all"}
"""The probe: texts and labels of several lengths, so that padding and packing are tried."""
COLOURS = {
    "good": ((200, 40, 40), (220, 60, 30), (180, 60, 60)),
    "bad": ((30, 60, 220), (40, 40, 200), (60, 80, 160)),
}


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, the verdict, and what was found ('no': what is refused, or wrong, and why)."""

    name: str
    verdict: Verdict
    found: str


@dataclass(frozen=True)
class Findings:
    """What `doctor` found for a model, most basic first."""

    model: str
    kind: str
    checks: tuple[Check, ...]
    adapted: Mapping[str, Any]
    difference: float | None

    @property
    def works(self) -> bool:
        """Whether a run with these settings would answer as it learnt."""
        return all(check.verdict != "no" for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "model": self.model,
            "kind": self.kind,
            "works": self.works,
            "checks": [vars(check) for check in self.checks],
            "adapted": dict(self.adapted),
            "difference": self.difference,
        }

    def lines(self) -> Iterator[str]:
        """The same as a table of text."""
        width = max(len(check.name) for check in self.checks)
        marks = {"ok": "ok", "note": "note", "no": "NO"}
        for check in self.checks:
            yield f"{check.name:<{width}}  {marks[check.verdict]:<4}  {check.found}"


def doctor(model: str | Mapping[str, Any], **settings: Any) -> Findings:
    """What works for a model.

    Args:
        model: a known name, a folder, a hub id, or settings of a backbone, as in `perdure.learn`.
        settings: others of a run that matter, such as lora={"targets": "all-linear"}.

    Raises:
        ConfigError, FetchError: it cannot be loaded, or its layers cannot be adapted; nothing else can be said then.
    """
    return examine(load_config({"backbone": model, **settings}))


def examine(config: RunConfig) -> Findings:
    """What works for the model of a configuration; for errors see `doctor`."""
    kind = backbone_kind(config.backbone)
    learner = load_backbone(config.backbone)
    own: Any = learner.model
    tied = sorted(sharing_modules(own))
    task = _probe(kind)
    learner.prepare([task])
    model = AdaptedModel(own, config.lora, config.lora.targets or learner.default_targets)
    ranking = _ranking(learner)  # before the probe's step, as in a run
    reach = model.coverage()
    size = sum(parameter.numel() for parameter in own.parameters()) - sum(p.numel() for p in _factors(model))
    difference, unreached, failure = _probed(model, learner, task)
    checks = (
        Check("model", "ok", f"{type(own).__name__} ({kind}), {size / 1e6:,.1f} M parameters on {model.device}"),
        Check("adapter", "ok", f"{coverage_line(reach.as_json())}: {_shown(model.targets)}"),
        *(Check("not adapted", "note", line) for line in (*coverage_warnings(reach), *model.left_out_notes())),
        _deployed(difference, failure),
        *([Check("gradient", "note", _without_gradient(unreached))] if unreached else []),
        Check("attention", "ok", getattr(learner, "attention", "of its own")),
        ranking,
        _batching(learner, task, failure),
        Check("tied weights", "ok", f"{', '.join(tied[:4])}: not adapted" if tied else "none"),
        _takes(model),
    )
    return Findings(str(config.backbone["model"]), kind, checks, reach.as_json(), difference)


def _probe(kind: str) -> Task:
    """A task of two classes, of texts or images."""
    inputs = {label: [picture(colour) for colour in colours] for label, colours in COLOURS.items()}
    if kind != "vision":
        inputs = {label: list(texts) for label, texts in TEXTS.items()}
    rows = [Example(each, label) for label, own in inputs.items() for each in own]
    return Task("probe", rows, test=rows, labels=LABELS)


def picture(colour: tuple[int, int, int]) -> str:
    """A gradient from black to a colour, as a data URI."""
    from PIL import Image

    grey, buffer = Image.linear_gradient("L").resize((48, 48)).convert("RGB"), io.BytesIO()
    grey.point([channel * i // 255 for channel in colour for i in range(256)]).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _factors(model: AdaptedModel) -> Iterator[Tensor]:
    return (factor for pair in model.factors().values() for factor in (pair.A, pair.B))


def _probed(model: AdaptedModel, learner: Backbone, task: Task) -> tuple[float | None, list[str], str]:
    """The largest difference between adapter and folded update after a step, the modules without a gradient, and what failed."""
    generator = torch.Generator().manual_seed(0)
    try:
        with memory_explained("trying the model"):
            batch = learner.collate(task.train)
            model.start(Start(_started(model, generator), "AB"))
            learner.forward(batch).loss.backward()
            unreached = [name for name, (_, grad_B) in model.gradients().items() if grad_B is None or not grad_B.any()]
            _step(model)
            return _difference(model, learner, batch, task.name), unreached, ""
    except (
        PerdureError,
        RuntimeError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        NotImplementedError,
    ) as error:
        return None, [], " ".join(str(error).split())[:300] or type(error).__name__


def _started(model: AdaptedModel, generator: torch.Generator) -> dict[str, Factors]:
    """A drawn at random, B zero."""
    return {
        name: Factors(
            torch.randn(pair.A.shape, generator=generator).to(pair.A) / pair.A.shape[1] ** 0.5,
            torch.zeros_like(pair.B),
            pair.scaling,
        )
        for name, pair in model.factors().items()
    }


@torch.no_grad()
def _step(model: AdaptedModel) -> None:
    """A step of gradient descent on B as long as a hundredth of the base's weights, whatever the loss's scale."""
    for module in model.modules.values():
        grad = module.B.grad
        if grad is not None and (norm := grad.norm()) > 0:
            module.B.sub_(grad * (0.1 / norm))


@torch.no_grad()
def _difference(model: AdaptedModel, learner: Backbone, batch: Batch, task: str) -> float:
    """Between the scores of the adapter and of the update folded into the base, as a share of the largest score."""
    update = {name: LowRank(pair.A.clone(), pair.B * pair.scaling) for name, pair in model.factors().items()}
    trained = learner.scores(batch, None, task)
    with model.deployed(update):
        folded = learner.scores(batch, None, task)
    return float((trained - folded).abs().max() / trained.abs().max().clamp_min(1))


def _deployed(difference: float | None, failure: str) -> Check:
    name = "deployed = learnt"
    if difference is None:
        return Check(name, "no", f"a training step failed: {failure}")
    found = f"adapter and folded update differ by {difference:.1e} of the largest score, after one step"
    return Check(name, "ok" if difference <= LARGEST_DIFFERENCE else "no", found)


def _without_gradient(names: list[str]) -> str:
    some = f"{', '.join(names[:2])}{', ...' * (len(names) > 2)}"
    return f"{len(names)} adapted modules get no gradient from the probe ({some})"


def _ranking(learner: Backbone) -> Check:
    ranked: Callable[[], str | None] = getattr(learner, "how_ranked", lambda: None)
    try:
        found = ranked()
    except ConfigError as error:
        return Check("packing", "no", str(error))
    if found is None:
        return Check("packing", "ok", "not needed: labels are not ranked by a language model")
    return Check("packing", "ok" if found.startswith("packed") else "note", found)


def _batching(learner: Backbone, task: Task, failure: str) -> Check:
    """Whether a text is answered alone as beside others, padded: the scores of the probe are compared."""
    name = "batching"
    if note := getattr(learner, "padding_note", lambda: None)():
        return Check(name, "note", note)
    mixes = getattr(learner, "_mixes", None)
    if mixes == "alone":
        return Check(name, "note", "what it writes depends on the texts beside it: every text is answered alone")
    if mixes == "written":
        return Check(name, "note", "padding changes what it writes: texts of one length are answered together")
    if failure:
        return Check(name, "note", "not tried, because the training step failed")
    difference, most = _beside(learner, task), NOISE[model_dtype(learner.model)]
    found = f"scores alone and beside other texts differ by {difference:.1e} of the largest"
    if mixes:
        found += "; padding changes what it reads, so texts of one length are read together"
    return Check(name, "no" if not difference <= most else "note" if mixes else "ok", found)


@torch.no_grad()
def _beside(learner: Backbone, task: Task) -> float:
    """Between the scores of the probe in one batch and one by one, as a share of the largest score."""
    together = learner.scores(learner.collate(task.train), None, task.name)
    alone = torch.cat([learner.scores(learner.collate([example]), None, task.name) for example in task.train])
    return float((together - alone).abs().max() / alone.abs().max().clamp_min(1))


def _takes(model: AdaptedModel) -> Check:
    if not model.dense_base:
        return Check(
            "adapters", "note", "LoRA; the quantised base carries sums of low rank only, no merge entry by entry"
        )
    return Check("adapters", "ok", "LoRA on its linear layers, summed or merged entry by entry")


def _shown(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else ", ".join(targets[:6]) + (", ..." if len(targets) > 6 else "")
