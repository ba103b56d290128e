"""A causal language model as a learner: the answer's text continues the prompt.

The loss is over the answer's tokens, its end included; answers are ranked among the label texts, or written.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from perdure.backbones.base import Batch, Outputs
from perdure.backbones.chat_tasks import NO_TEMPLATE, ChatTasks
from perdure.backbones.chats import ChatFormat, Learn
from perdure.backbones.device import autocast, model_device
from perdure.backbones.language import LanguageModel
from perdure.backbones.language_settings import LanguageSettings
from perdure.backbones.losses import token_loss
from perdure.backbones.mixing import attention_window, reads_neighbours, takes_no_positions
from perdure.backbones.modes import drops_out, without_dropout
from perdure.backbones.packing import Packed, Trunk, packed
from perdure.backbones.prefix import Prefix, cached, computed_prefix
from perdure.backbones.pretrained import check_positions, check_vocabulary, load_model, load_tokenizer
from perdure.backbones.ranking import additive_mask, agree, at_least_fp32, label_tree, logits_at, packed_scores
from perdure.backbones.templates import check_args, digest, pin_date
from perdure.backbones.tokens import PromptFormat, padded
from perdure.backbones.verdicts import Failed
from perdure.errors import ConfigError, DataError
from perdure.tasks.task import Example, Task

LONGEST = "backbone.max_length + max_new_tokens"
NOT_PACKED = (
    "backbone.packing=true would train '{model}' on something else than one text a row: {reason}. Set it to false."
)


class CausalSettings(LanguageSettings):
    """How a causal language model reads and answers; see `LanguageSettings` and `ModelSettings` for the rest."""

    kind: Literal["causal"] = "causal"
    model: str = "smollm2-135m"
    chat: bool | None = None
    """use the tokenizer's chat template; None = if it has one."""
    system: str | None = None
    """system message of the chat; None = the template's default."""
    separator: str = " "
    """between a plain prompt and its answer."""
    loss_on: Literal["completion", "all"] = "completion"
    """'completion', or 'all' for the prompt's tokens too."""
    learn: Learn = "last"
    """which assistant turns of a chat are learnt: the 'last', 'all', or 'weighted': all but those with `weight: 0` (the key
    of OpenAI's and Mistral's files). The last turn is the one that is answered and scored."""
    packing: bool = False
    """train on a step's examples in few rows, with what all of them begin with computed once, instead of one padded row
    each: the same loss and gradients up to rounding, less work. Refused where a model's layers are not all plain attention,
    or a trial shows another loss."""
    template_args: dict[str, Any] = Field(default_factory=dict)
    """further arguments of the chat template, such as {enable_thinking: false}, the same in training, answering and serving."""
    template_date: str | None = None
    """today's date for a chat template that writes it into prompts, YYYY-MM-DD; None = the day the run begins, recorded."""

    @field_validator("template_date")
    @classmethod
    def _a_date(cls, value: str | None) -> str | None:
        return value if value is None else datetime.date.fromisoformat(value).isoformat()


class CausalLM(LanguageModel):
    """Any causal language model of transformers behind the `Backbone` protocol. Use `CausalLM.load`."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: CausalSettings) -> None:
        super().__init__(model, tokenizer, settings)
        chat = bool(tokenizer.chat_template) if settings.chat is None else settings.chat
        if not chat and (settings.template_args or settings.template_date):
            raise ConfigError("backbone.template_args and template_date belong to a chat template, and none is used.")
        if chat:
            date = pinned(tokenizer, settings)
            self.settings = settings = settings.model_copy(update={"template_date": date})
        self.format = PromptFormat(tokenizer, chat, settings.system, settings.separator, settings.template_args)
        self.gap = "" if chat else settings.separator
        self.template = digest(tokenizer) if chat else None
        self.reads_chats = chat
        self._loss_on = settings.loss_on
        longest = settings.max_length + settings.max_new_tokens
        other = reads_neighbours(model) or takes_no_positions(model)
        self._refuse_packing(other)
        if (window := attention_window(model)) is not None and window < longest:
            other = f"its layers see a window of {window} tokens ({LONGEST} = {longest})"
            self._refuse_packing(other, ", or lower max_length")
        self._plain = other is None
        self._rows_agree = False
        # with gradient checkpointing a pass keeps no keys and values for the next
        self._trunk: Trunk = "row" if settings.gradient_checkpointing else "step"
        if settings.packing and other:
            raise ConfigError(NOT_PACKED.format(model=settings.model, reason=other))

    @classmethod
    def load(cls, settings: CausalSettings) -> CausalLM:
        """The pretrained model and its tokenizer; for errors see `perdure.backbones.pretrained`."""
        model = load_model(AutoModelForCausalLM, settings, "causal language model")
        check_positions(model, settings.model, settings.max_length + settings.max_new_tokens, LONGEST)
        tokenizer = load_tokenizer(settings)
        check_vocabulary(model, tokenizer, settings.model)
        return cls(model, tokenizer, settings)

    @cached_property
    def chats(self) -> ChatTasks:  # pyright: ignore[reportIncompatibleMethodOverride]  (a property that is kept)
        """How chats are read; DataError without a chat template, or with backbone.chat=false."""
        if not self.reads_chats:
            raise DataError(NO_TEMPLATE)
        return ChatTasks(chat_format(self.tokenizer, self.settings), self.settings)  # pyright: ignore[reportArgumentType]

    def _batch(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], examples: Sequence[Example] = ()
    ) -> Batch:
        rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
        ids, mask = padded(rows, self.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        everything = self._loss_on == "all" and examples
        starts = torch.tensor([1 if everything else len(prompt) for prompt in prompts])
        targets = mask & (torch.arange(ids.shape[1]) >= starts[:, None])
        if examples and not everything:
            targets = self._targets(rows, targets, examples)
        predicting = targets.roll(-1, dims=1)  # the position before each target; the first column is never a target
        inputs = {"input_ids": ids, "attention_mask": mask.long()}
        extra: dict[str, Any] = {"predicting": predicting, "answers": ids[targets]}
        if self.settings.packing and len(examples) > 1:  # pyright: ignore[reportAttributeAccessIssue]
            trunk = "none" if drops_out(self.model) else self._trunk
            extra["packed"] = packed(rows, targets, self._width, trunk)
        return Batch(examples, inputs, int(targets.sum()), mask, extra=extra).to(model_device(self.model))

    def forward(self, batch: Batch) -> Outputs:
        """See `LanguageModel`; in packed rows where `backbone.packing` asks for them."""
        rows: Packed | None = batch.extra.get("packed")
        if rows is None:
            return super().forward(batch)
        with autocast(self.model, self.precision):
            logits = self._logits_of(rows)
        return Outputs(token_loss(at_least_fp32(logits), rows.answers, batch))

    def _logits_of(self, rows: Packed) -> Tensor:
        inputs: dict[str, Any] = {"input_ids": rows.ids, "position_ids": rows.positions}
        if len(rows.trunk):
            inputs |= cached(self.model, computed_prefix(self.model, rows.trunk.tolist()).lent)
        mask = additive_mask(self.model, rows.allowed())[:, None]
        return logits_at(self.model, rows.predicting, attention_mask=mask, **inputs)

    def prepare(self, tasks: Iterable[Task]) -> None:
        """See `LanguageModel`; raises ConfigError also where packing is asked for and a trial shows another loss."""
        super().prepare(tasks)
        if self.settings.packing and not self._rows_agree:  # pyright: ignore[reportAttributeAccessIssue]
            self._try_rows()

    def _try_rows(self) -> None:
        """Compare, once, what is predicted of a few examples in packed and in padded rows, in the weights' precision."""
        # a text that is all learnt shares nothing, so it is tried only where there is nothing else
        tasks = sorted(self._tasks.values(), key=lambda task: task.learns_text)
        task = next((task for task in tasks if len(task.train) > 1), None)
        if task is None:
            return
        if self._trunk == "step" and self._rows_differ(task):
            self._trunk = "row"  # its cache is not one that passes can share
        if self._trunk == "row" and (reason := self._rows_differ(task)):
            raise ConfigError(NOT_PACKED.format(model=self.settings.model, reason=f"it was tried, and {reason}"))
        self._rows_agree = True

    def _rows_differ(self, task: Task) -> str | None:
        """Why rows of this task are not right for the model; None if they are, of different and of equal examples."""
        batch = self.collate(task.train[:3])
        ids = [self._trunk, *(t.tolist() for t in (*batch.inputs.values(), batch.extra["predicting"]))]
        return self._proven("packed rows", ids, lambda: self._apart_in_rows(task))

    def _apart_in_rows(self, task: Task) -> str | None:
        """The trial: the loss in packed and in padded rows."""
        for examples in (task.train[:3], [task.train[0]] * 2):
            batch = self.collate(examples)
            with torch.no_grad(), without_dropout(self.model):
                try:
                    rows = self._tried_rows(batch)
                    one = functional.cross_entropy(self._logits_of(rows), rows.answers)
                    other = functional.cross_entropy(
                        logits_at(self.model, batch.extra["predicting"], **batch.inputs), batch.extra["answers"]
                    )
                except (TypeError, ValueError, RuntimeError, IndexError, KeyError, AttributeError) as error:
                    return Failed(f"the model does not accept it ({str(error).partition(chr(10))[0][:100]})")
            if not agree(self.model, one, other):
                return f"the loss is {one:.6g} instead of {other:.6g}"
        return None

    def _tried_rows(self, batch: Batch) -> Packed:
        """Rows of the batch that share what they can, however little."""
        ids, targets = batch.inputs["input_ids"].cpu(), batch.extra["predicting"].cpu().roll(1, dims=1)
        real = batch.inputs["attention_mask"].cpu().bool()
        rows = [own[mask].tolist() for own, mask in zip(ids, real, strict=True)]
        found = packed(rows, targets, self._width, self._trunk, pass_cost=0)
        return Packed(*(part.to(model_device(self.model)) for part in found))

    @property
    def _width(self) -> int:
        return self.model.get_input_embeddings().embedding_dim  # pyright: ignore[reportCallIssue, reportReturnType]

    def _targets(self, rows: Sequence[list[int]], targets: Tensor, examples: Sequence[Example]) -> Tensor:
        """The targets [N, length] of training: in chats the turns that are learnt, elsewhere `targets`."""
        for row, example in enumerate(examples):
            task = self._tasks.get(example.task)
            if task and task.chats and not task.labels:
                learnt = torch.tensor(self.chats.learnt(example))
                targets[row, : len(rows[row])] = learnt
                targets[row, 0] = False  # nothing comes before the first token
        return targets

    @property
    def _reader(self) -> nn.Module:
        return self.model.base_model  # pyright: ignore[reportReturnType]

    def _packed(
        self, prompts: Sequence[list[int]], completions: Sequence[list[int]], prefix: Prefix | None = None
    ) -> Tensor:
        return packed_scores(self.model, prompts, label_tree(completions), self.settings.label_score, prefix)


def pinned(tokenizer: PreTrainedTokenizerBase, settings: CausalSettings) -> str | None:
    """Check the template's arguments and pin its date; the date, None if it reads none. For errors see `templates`."""
    check_args(tokenizer, settings.template_args)
    return pin_date(tokenizer, settings.template_date)


def chat_format(tokenizer: PreTrainedTokenizerBase, settings: CausalSettings) -> ChatFormat:
    """How the settings write chats, with a tokenizer whose date is pinned."""
    return ChatFormat(tokenizer, settings.system, settings.template_args, settings.learn)
