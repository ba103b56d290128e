"""How a language model reads and answers, as settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from perdure.backbones.pretrained import ModelSettings


class LanguageSettings(ModelSettings):
    """How a language model reads and answers."""

    max_length: int = Field(default=256, ge=2)
    """prompts are cut to this many tokens."""
    cut: Literal["middle", "start", "end"] = "middle"
    """where longer prompts are cut: what goes is their middle, their start or their end (with the cue for the answer)."""
    max_new_tokens: int = Field(default=50, ge=1)
    """longest answer in tokens, its end included; a label text must fit."""
    long_targets: Literal["error", "cut"] = "error"
    """free-text targets above that are an error, or cut (their end is then not learnt)."""
    answer_by: Literal["auto", "ranking", "generation"] = "auto"
    """'ranking' scores every label text, 'generation' lets the model write; 'auto' ranks if there are labels. A
    written answer counts as a label if they are equal up to case, spacing and punctuation."""
    label_score: Literal["sum", "mean"] = "sum"
    """a label's log-probabilities are summed, or averaged over its tokens."""
    share_prefix: bool = True
    """when answering, compute what all prompts of a task begin with (its instruction, its list of labels) once, and on a
    CPU cut batches where padding would cost more than another pass. Only where all layers are plain attention and a trial
    shows the same scores up to rounding; false = every prompt whole, in batches of `predict_batch_size`."""
    ranking: Literal["auto", "packed", "exhaustive"] = "auto"
    """'packed' computes the prompt once for all labels, 'exhaustive' once for each; 'auto' packs if that changes no
    score: all layers are plain attention, none has a window shorter than prompt and answer, and both ways agree on a
    short and a long prompt up to rounding, tried once. 'packed' is refused where it would change scores."""
