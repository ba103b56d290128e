"""How a stage is trained, as settings; names follow transformers' TrainingArguments where both have the same thing."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from perdure.settings.read import Settings

Weight = Annotated[float, Field(gt=0)]


def _named(value: Any) -> Any:
    """Labels are strings; YAML reads `0` as a number."""
    return {str(label): weight for label, weight in value.items()} if isinstance(value, dict) else value


class EarlyStopping(Settings):
    """When a stage is validated while it is trained, and when it ends early."""

    patience: int | None = Field(default=None, ge=1)
    """so many evaluations in a row without improvement end the stage (`early_stopping_patience`); None = never."""
    every: int | None = Field(default=None, ge=1)
    """steps between evaluations (`eval_steps`), also for `keep`; None = an epoch. The last step is always evaluated."""
    min_change: float = Field(default=0.0, ge=0)
    """a score counts as improved if it is higher than the best before by more than this, of 1
    (`early_stopping_threshold`)."""
    metric: str | None = None
    """what is improved (`metric_for_best_model`): the name of a score, or `module:function` of your own; higher is better.
    None = the task's own."""


class TrainingSettings(Settings):
    """How one stage is trained."""

    optimizer: Literal["adamw", "adafactor", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """transformers' `optim`: torch's AdamW; transformers' Adafactor (fixed learning rate, no momentum); or bitsandbytes'
    AdamW with states of 8 bits (extra `quantized`), paged out to the CPU's memory where a GPU's is full (GPU only)."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """the optimizer's learning rate in the first stage."""
    later_learning_rate_factor: float = Field(default=1.0, gt=0)
    """multiplies the learning rate in every later stage."""
    epochs: int = Field(default=3, ge=0)
    """passes over the stage's training examples; 0 = the adapter stays zero and a method's head answers alone."""
    batch_size: int = Field(default=16, ge=1)
    """examples per optimiser step."""
    accumulation: int = Field(default=1, ge=1)
    """micro-batches per step; saves memory, the gradient is the same."""
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """share of the steps over which the learning rate rises from 0."""
    schedule: Literal[
        "constant",
        "linear",
        "cosine",
        "constant_with_warmup",
        "cosine_with_restarts",
        "cosine_with_min_lr",
        "polynomial",
        "inverse_sqrt",
        "warmup_stable_decay",
    ] = "constant"
    """learning-rate schedule. The first three follow the warm-up, whose first step already has a rate above 0; the others
    are transformers' own (`lr_scheduler_type`), whose warm-up begins at 0."""
    schedule_args: dict[str, float | str] = Field(default_factory=dict)
    """further arguments of transformers' schedule (`lr_scheduler_kwargs`), such as {num_cycles: 2} or {min_lr_rate: .1};
    num_decay_steps of warmup_stable_decay is a tenth of the steps unless given."""
    weight_decay: float = Field(default=0.0, ge=0)
    """the optimizer's weight decay."""
    max_grad_norm: float | None = Field(default=1.0, gt=0)
    """clip gradients to this norm; None = never."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """share of every target that is spread evenly over all answers (`label_smoothing_factor`): over the task's labels where
    the loss compares those (encoders, vision), over the vocabulary where it is of tokens."""
    class_weights: Annotated[Literal["none", "balanced"] | dict[str, Weight], BeforeValidator(_named)] = "none"
    """what an example counts in the loss: 'balanced' = examples / (labels x examples of its label), as scikit-learn's, for
    each task of the stage; or a mapping {label: weight}, 1 for labels it leaves out. Replayed examples of earlier tasks
    count 1. Losses are divided by the sum of the weights, as torch's."""
    early_stopping: EarlyStopping = EarlyStopping()
    """end a stage when its validation examples stop getting better."""
    keep: Literal["last", "best"] = "last"
    """which step makes the stage's update: the last, or the best on the validation examples (`load_best_model_at_end`).
    Test examples are never looked at."""
    average: Literal["none", "last-half"] = "none"
    """'last-half' makes the stage's update from the mean of the factors over the last half of the steps."""
    checkpoint_minutes: float | None = Field(default=10.0, gt=0, exclude=True)
    """minutes between checkpoints inside a stage, from which a stopped run resumes; None = between stages only. Does not
    affect the result, and is not saved in the run's configuration."""
