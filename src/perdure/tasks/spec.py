"""Settings of a custom task: the keys of a task's YAML file, or of an entry of `tasks` in a configuration."""

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
"""Maximum number of examples of a split."""
Some = Annotated[int, Field(ge=1)] | Literal["all"]
"""The same for a split that must not be empty."""
READING = ("format", "text_field", "label_field", "free", "encoding", "bad_rows")
LABELLING = ("format", "label_field", "labels", "free", "template")


def label_names(value: Any) -> Any:
    """Label names as strings: YAML reads 0 as an integer; true and false become booleans, whose spelling is lost."""
    words = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if not isinstance(words, (list, tuple)):
        return value
    if any(isinstance(word, bool) for word in words):
        raise ValueError("YAML reads true and false as booleans: put labels in quotes")
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else tuple(map(str, value))


Labels = Annotated[dict[str, str] | tuple[str, ...] | None, BeforeValidator(label_names)]
"""Class names, or class name -> the text that stands for it."""


def check_is_task(path: Path, settings: Mapping[str, Any]) -> None:
    """Check that the settings read from `path` describe a task.

    Raises:
        ConfigError: they are a run's configuration.
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
    """a file (.jsonl, .json, .csv, .tsv or .parquet, relative to the YAML file), or the name of a split with `dataset`.
    Images are given as paths, absolute or relative to that file."""
    validation: str | None = None
    """as `train`; if not given, it is cut from train, and the task's notes say so."""
    test: str | None = None
    """as `train`; if not given, it is cut from train, and the task's notes say so."""
    dataset: str | None = None
    """an id that `datasets` loads, instead of files."""
    config: str | None = None
    """which configuration of the `dataset`."""
    package: dict[str, Any] | None = None
    """a reader and an asset, as in the files of `suites/`, instead of files."""
    format: FormatName = "auto"
    """layout of the records; 'auto' detects it from their fields."""
    text_field: str | None = None
    """field of the text, if it has an unusual name."""
    label_field: str | None = None
    """field of the label, if it has an unusual name."""
    labels: Labels = None
    """class names, or class name -> the text that stands for it in front of a model; default: those of the training
    examples. If labels are integers, list the names in order."""
    free: bool | None = None
    """the labels are free text (generation); None = by the format."""
    template: str = ""
    """what a language model reads, with "{text}" in place of the text."""
    metric: str | None = None
    """name of the score (docs/own-data.md lists them), or `module:function` of your own; None = accuracy, or rouge-l for
    free text. With inverse-perplexity the texts themselves are learnt: only the text of a record is read."""
    train_size: Some = "all"
    """maximum number of examples."""
    validation_size: Size | None = None
    """maximum number of examples; if cut from train, at most a fifth of it. None = all of a given split, and at most 1,000
    if cut from train."""
    test_size: Some | None = None
    """maximum number of examples; if cut from train, at most a quarter of it. None = all of a given split, and at most 2,000
    if cut from train."""
    seed: int = Field(default=0, ge=0)
    """which training and validation examples are drawn; the test examples are the same for every seed."""
    encoding: str = "utf-8"
    """encoding of text files."""
    bad_rows: Literal["error", "skip"] = "error"
    """rows that cannot be read are an error that lists them, or are left out; then the notes say how many, and skipped/ in the
    run's folder which and why."""
    same_validation_and_test: bool = False
    """accept that both hold the same examples. Settings chosen on validation are then chosen on the test split."""
    without_near_repeats: bool = False
    """also remove near-duplicate texts (at least 0.8 of the 5-word runs shared)."""

    @model_validator(mode="after")
    def _one_source(self) -> TaskSpec:
        if (self.dataset and self.package) or not (self.train or self.dataset or self.package):
            raise ValueError("say where the examples come from: one of `train` (a file), `dataset` or `package`")
        if self.config and not self.dataset:
            raise ValueError("`config` belongs to `dataset`")
        if self.same_validation_and_test and not (self.validation and self.test):
            raise ValueError("`same_validation_and_test` needs both splits")
        return self

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> TaskSpec:
        language_modelling = self.metric == INVERSE_PERPLEXITY
        fields = self.text_field or self.label_field
        self._refuse(self.package, "`package` brings its own splits and reads them itself", *SPLITS, *READING)
        self._refuse(self.dataset, "a `dataset` is not a text file", "encoding")
        self._refuse(language_modelling, f"the metric {INVERSE_PERPLEXITY} learns the texts themselves", *LABELLING)
        self._refuse(fields, "`format` has its own fields; set `free: true` if labels are free text", "format")
        self._refuse(self.free, "`free: true` means labels are free text, not classes", "labels")
        return self

    def _refuse(self, condition: object, why: str, *names: str) -> None:
        """Refuse settings that would be ignored under `condition`."""
        ignored = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if condition and ignored:
            raise ValueError(f"{why}: leave out {', '.join(ignored)}")

    def with_bad_rows(self, way: Literal["error", "skip"]) -> TaskSpec:
        """The same, with rows that cannot be read treated so; a package reads its rows itself."""
        return self if self.package else self.model_copy(update={"bad_rows": way})

    def located(self, folder: str | Path) -> TaskSpec:
        """The same with absolute file names; relative ones are resolved against `folder`."""
        if self.dataset or self.package:
            return self
        given = {split: getattr(self, split) for split in SPLITS}
        files = {s: str((Path(folder) / Path(file).expanduser()).resolve()) for s, file in given.items() if file}
        return self.model_copy(update=files)
