"""A task of your own as settings: what a task's YAML file, or the `tasks` of a configuration, may say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from perdure.errors import ConfigError
from perdure.settings.read import Settings
from perdure.tasks.task import INVERSE_PERPLEXITY, SPLITS

FormatName = Literal["auto", "text-label", "prompt-completion", "instruction", "messages"]
Size = Annotated[int, Field(ge=0)] | Literal["all"]
"""How many examples of a split, at most."""
Some = Annotated[int, Field(ge=1)] | Literal["all"]
"""The same of a split that cannot be empty."""
READING = ("format", "text_field", "label_field", "free", "encoding")
LABELLING = ("format", "label_field", "labels", "free", "template")


def label_names(value: Any) -> Any:
    """Label names are texts; YAML reads 0 as a number, and no, off, yes as truth values whose word is lost."""
    words = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if isinstance(words, (list, tuple)) and any(isinstance(word, bool) for word in words):
        raise ValueError("YAML reads yes, no, on, off, true and false as truth values: put labels in quotes")
    if isinstance(value, dict):
        return {str(name): str(text) for name, text in value.items()}
    return tuple(str(name) for name in value) if isinstance(value, (list, tuple)) else value


Labels = Annotated[dict[str, str] | tuple[str, ...] | None, BeforeValidator(label_names)]
"""Class names, or class name -> the text that stands for it."""


def check_is_task(path: Path, settings: Mapping[str, Any]) -> None:
    """What was read from a file is a task's.

    Raises:
        ConfigError: it is a run's configuration.
    """
    if settings.keys() & {"suite", "tasks", "method"}:
        raise ConfigError(
            f"'{path}' is a run's configuration, not a task: give a file with `name` and `train` of one task."
        )


class TaskSpec(Settings):
    """Where a task's examples come from and how they are read."""

    name: str
    """used in file names and tables; letters, digits, '.', '_' and '-'; 'name@2' is a new version of 'name'."""
    train: str | None = None
    """files (.jsonl, .json, .csv, .tsv, .parquet; relative to the YAML file), or names of splits with `dataset`.
    Images are named by paths, absolute or relative to the file that names them. A split that is not given is cut from
    train, and the task's notes say so."""
    validation: str | None = None
    """files (.jsonl, .json, .csv, .tsv, .parquet; relative to the YAML file), or names of splits with `dataset`.
    Images are named by paths, absolute or relative to the file that names them. A split that is not given is cut from
    train, and the task's notes say so."""
    test: str | None = None
    """files (.jsonl, .json, .csv, .tsv, .parquet; relative to the YAML file), or names of splits with `dataset`.
    Images are named by paths, absolute or relative to the file that names them. A split that is not given is cut from
    train, and the task's notes say so."""
    dataset: str | None = None
    """an id that `datasets` loads, instead of files."""
    config: str | None = None
    """which configuration of the `dataset`."""
    package: dict[str, Any] | None = None
    """a reader and an asset, as in the files of `suites/`, instead of files."""
    format: FormatName = "auto"
    """what the records look like; 'auto' tells it from their fields."""
    text_field: str | None = None
    """names of the fields, where they are not the usual ones."""
    label_field: str | None = None
    """names of the fields, where they are not the usual ones."""
    labels: Labels = None
    """class names, or class name -> the text that stands for it in front of a model; not given: those of the training
    examples. For whole numbers as labels, give the names in order."""
    free: bool | None = None
    """the labels are free texts (generation); None = by the format."""
    template: str = ""
    """what a language model reads, with the text in place of "{text}"."""
    metric: str | None = None
    """of the score; None = accuracy, or rouge-l for free texts. With inverse-perplexity the texts themselves are
    learnt: of a record only the text is read."""
    train_size: Some = "all"
    """examples at most; 'all' there are, and of a split that is cut: a fifth for validation, a quarter for test."""
    validation_size: Size = "all"
    """examples at most; 'all' there are, and of a split that is cut: a fifth for validation, a quarter for test."""
    test_size: Some = "all"
    """examples at most; 'all' there are, and of a split that is cut: a fifth for validation, a quarter for test."""
    seed: int = Field(default=0, ge=0)
    """which training and validation examples are drawn; the test examples are the same for every seed."""
    encoding: str = "utf-8"
    """of text files."""
    same_validation_and_test: bool = False
    """accept that both hold the same examples. Settings chosen on that validation split are then chosen on the test
    split."""
    without_near_repeats: bool = False
    """also leave out texts that nearly repeat another one (at least 0.8 of the 5-word runs shared)."""

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.dataset and self.package) or not (self.train or self.dataset or self.package):
            raise ValueError("say where the examples come from: `train` (a file), `dataset` or `package`, one of them")
        if self.config and not self.dataset:
            raise ValueError("`config` belongs to `dataset`")
        if self.same_validation_and_test and not (self.validation and self.test):
            raise ValueError("`same_validation_and_test` needs both splits")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> TaskSpec:
        learnt = self.metric == INVERSE_PERPLEXITY
        fields = self.text_field or self.label_field
        self._idle(self.package, "`package` brings its own splits and reads them itself", *SPLITS, *READING)
        self._idle(self.dataset, "a `dataset` is no text file", "encoding")
        self._idle(learnt, f"with the metric {INVERSE_PERPLEXITY} texts are learnt as they are", *LABELLING)
        self._idle(fields, "`format` has fields of its own; say `free: true` if labels are texts", "format")
        self._idle(self.free, "`free: true` says that labels are texts to write, not classes", "labels")
        return self

    def _idle(self, holds: object, why: str, *names: str) -> None:
        """None of these settings is given if `holds`.

        Raises:
            ValueError: one is, and would be ignored.
        """
        found = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if holds and found:
            raise ValueError(f"{why}: leave out {', '.join(found)}")

    def located(self, folder: str | Path) -> TaskSpec:
        """The same with absolute file names; relative ones are looked for in `folder`."""
        if self.dataset or self.package:
            return self
        given = {split: getattr(self, split) for split in SPLITS}
        files = {s: str((Path(folder) / Path(file).expanduser()).resolve()) for s, file in given.items() if file}
        return self.model_copy(update=files)
