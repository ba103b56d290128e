"""Does a fast way of answering change a label in bf16? The run's answers against one text and one label at a time.

A run of eight labels in precision bf16 answers as runs do: prompts packed with labels, batched, a shared beginning computed
once, each where the model was found to allow it. The same deployed weights then answer again with every label in a pass of its
own, every text alone, nothing shared. Both ways round differently, so two labels of nearly equal scores may change places: that
is counted apart, by how far bf16 itself moves that text's scores from fp32's. The same of bases that are stored in bf16
(`backbone.dtype: bfloat16`), and so compute in it, against the same weights in fp32.

Labels are scored by the mean over their tokens: by the sum, a random language model prefers the shortest, whatever the text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.breadth.differences import SMALLEST, farthest

from perdure import Example, Task, learn
from perdure.backbones import load_backbone
from perdure.backbones.base import Prediction
from perdure.commands.doctor import picture
from perdure.config.run_config import load_config
from perdure.state.record import load_deployed
from perdure.state.reopen import reopened_model
from perdure.state.store import Store
from perdure.training.evaluation import answer
from perdure.training.lora import AdaptedModel

METHOD = "n-lora"
"""One method: how a model answers depends on its layers, not on what was learnt by which penalty."""
NAMES = "abcdefgh"
TEXTS_OF_LABELS = (
    "bad weather",
    "good weather",
    "bad meal",
    "good meal with friends",
    "rain all day",
    "a clear sky",
    "thunder",
    "a burger",
)
LABELS: dict[str, str] = dict(zip(NAMES, TEXTS_OF_LABELS, strict=True))
PARTS = (
    ("It will rain all day", "The soup was cold", "Sunshine"),
    ("", " and bland", " with thunder", " and a light breeze over the hills"),
    ("", ", all day and all night, tonight and in years"),
)
TEXTS = tuple("".join(parts) for parts in itertools.product(*PARTS))
ALONE: dict[str, Any] = {"predict_batch_size": 1, "ranking": "exhaustive", "share_prefix": False}


def task(kind: str) -> Task:
    """Eight labels and 24 texts (or images), of which eight are learnt and all are answered."""
    images = [picture((i * 37 % 256, i * 91 % 256, i * 53 % 256)) for i in range(len(TEXTS))]
    inputs = images if kind == "vision" else TEXTS
    rows = [Example(each, NAMES[i % len(NAMES)]) for i, each in enumerate(inputs)]
    return Task("eight", rows[:8], validation=rows[:8], test=rows, labels=LABELS)


def labels_changed(backbone: Mapping[str, Any], settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """How labels are ranked, and how many answers of a run in bf16 change one text and one label at a time."""
    if backbone["kind"] in ("causal", "seq2seq"):
        backbone = {**backbone, "label_score": "mean"}
    precision = "fp32" if backbone.get("dtype") == "bfloat16" else "bf16"  # what is stored in bf16 computes in it
    learnt = task(backbone["kind"])
    learn(out=out, tasks=[learnt], backbone=backbone, method=METHOD, **{**settings, "precision": precision})
    store = Store(out)
    model, own = reopened_model(store, [learnt])
    runs = answer(model, own, load_deployed(store), learnt.test, [learnt.name])
    ranked = getattr(own, "how_ranked", lambda: None)()
    alone = _alone(store, backbone, settings, learnt.test, precision)
    places = [i for i, (one, other) in enumerate(zip(runs, alone, strict=True)) if one.label != other.label]
    exact = _alone(store, backbone, settings, [learnt.test[i] for i in places], "fp32", exact=True)
    beyond = sum(not near_tie(runs[i].label, alone[i], known) for i, known in zip(places, exact, strict=True))
    used = len({each.label for each in alone})
    return {
        "ranked": ranked,
        "texts": len(runs),
        "labels_given": used,
        "changed": len(places),
        "beyond_rounding": beyond,
        "largest_difference": farthest(runs, alone),
    }


def _alone(
    store: Store,
    backbone: Mapping[str, Any],
    settings: Mapping[str, Any],
    examples: Sequence[Example],
    precision: Any,
    exact: bool = False,
) -> list[Prediction]:
    """Answers of what the run deployed, by one text and one label at a time; `exact`: with the stored weights in fp32."""
    learnt = task(backbone["kind"])
    ranks = backbone["kind"] in ("causal", "seq2seq")
    own = ALONE if ranks else {"predict_batch_size": 1}
    learner: Any = load_backbone({**backbone, **own})
    if exact:
        learner.model.float()
    learner.prepare([learnt])
    learner.precision = precision
    lora = load_config({"backbone": dict(backbone), **settings}).lora
    model = AdaptedModel(learner.model, lora, lora.targets or learner.default_targets)
    return answer(model, learner, load_deployed(store), examples, [learnt.name])


def near_tie(label: str, alone: Prediction, exact: Prediction) -> bool:
    """Whether rounding to bf16 moves this text's scores by as much as lies between the best label and the one given."""
    in_bf16, in_fp32 = _logs(alone), _logs(exact)
    moved = max(abs(one - other) for one, other in zip(in_bf16, in_fp32, strict=True))
    return max(in_bf16) - in_bf16[NAMES.index(label)] <= 2 * moved


def _logs(prediction: Prediction) -> list[float]:
    return [math.log(max(p, SMALLEST)) for p in prediction.probabilities]
