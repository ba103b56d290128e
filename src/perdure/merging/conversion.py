"""Which parameter of a model each tensor of its file becomes, by transformers' own conversion mapping.

transformers 5 renames many weights as it loads them, and fuses, splits or transposes some. Its own code is asked about each name
in the file, with a model without memory (the meta device); what it does to the entries shows when it converts their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perdure.errors import AdapterError

Shape = tuple[int, ...]
LAYER_COUNTS = re.compile(r"(num_|n_).*(layers|blocks)|n_layer|n_layers|depth")
"""Settings whose number of modules is built; each of those has a tensor in the file."""


@dataclass(frozen=True, eq=False)
class Converted:
    """Tensors of the file that transformers converts together, and the parameters it makes of them.

    Args:
        files, params: name -> shape.
        convert: tensors of the file -> parameters, by transformers' own code.
    """

    files: Mapping[str, Shape]
    params: Mapping[str, Shape]
    convert: Any

    def to_file(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Changes of some of the parameters as changes of the tensors in the file, each [first dimension, all others].

        Raises:
            AdapterError: the conversion does more than move entries.
        """
        sizes = [torch.Size(shape).numel() for shape in self.files.values()]
        starts = [0, *accumulate(sizes)]
        numbered = {
            name: torch.arange(start, start + size).view(shape)
            for (name, shape), start, size in zip(self.files.items(), starts, sizes, strict=False)
        }
        where = self.convert(numbered)
        moved = torch.cat([where[param].flatten() for param in self.params])
        if (
            moved.dtype != torch.int64
            or moved.numel() != starts[-1]
            or moved.bincount(minlength=starts[-1]).ne(1).any()
        ):
            raise AdapterError(
                f"transformers computes '{next(iter(self.params))}' from '{next(iter(self.files))}' in a way that does more than "
                "move entries, so an update cannot be written into that file. Keep it as an adapter."
            )
        whole = torch.zeros(starts[-1], dtype=next(iter(changes.values())).dtype)
        for param, change in changes.items():
            whole[where[param].flatten()] = change.flatten()
        parts = zip(self.files.items(), starts, sizes, strict=False)
        return {name: whole[start : start + size].view(shape[0], -1) for (name, shape), start, size in parts}


@dataclass(frozen=True)
class Conversion:
    """What becomes of a file's tensors.

    Args:
        renamed: parameter -> name in the file.
        converted: parameter -> the conversion it comes from.
        tied: parameters that are one and the same tensor as another -> the others.
    """

    renamed: Mapping[str, str]
    converted: Mapping[str, Converted]
    tied: Mapping[str, tuple[str, ...]]

    @property
    def params(self) -> list[str]:
        """The model's parameters that the file holds."""
        return [*self.renamed, *self.converted]


NOTHING = Conversion({}, {}, {})


def read_conversion(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> Conversion:
    """How transformers loads a file with tensors of these names and shapes into the model of `folder` (config.json: `config`).

    `NOTHING` for a model that transformers does not know: names in the file are then those of its modules.
    """
    counts = (value for key, value in config.items() if LAYER_COUNTS.fullmatch(key) and isinstance(value, int))
    if not isinstance(config.get("model_type"), str) or max(counts, default=0) > len(shapes):
        return NOTHING
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping

        model = _empty_model(folder, config)
        transforms = get_model_conversion_mapping(model)
    except Exception:
        return NOTHING
    return _conversion(model, transforms, shapes)


def name_now(model: Any, name: str, modules: Collection[str]) -> tuple[str, bool] | None:
    """What transformers makes of a weight's name from an earlier version, where `modules` has it; else None.

    And whether it only renames the weight: others it fuses, splits or transposes.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        transforms = get_model_conversion_mapping(model)
    except Exception:
        return None
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    now, pattern = rename_source_key(name, renamings, converters)
    return (now, pattern is None) if now != name and now.rpartition(".")[0] in modules else None


def _empty_model(folder: Path, config: Mapping[str, Any]) -> Any:
    """The model on the meta device: names and shapes only."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = CONFIG_MAPPING[config["model_type"]].from_pretrained(folder, local_files_only=True)
    named = [getattr(transformers, str(name), None) for name in config.get("architectures") or ()]
    known = [each for each in named if isinstance(each, type) and issubclass(each, transformers.PreTrainedModel)]
    with torch.device("meta"):
        return known[0](settings) if known else transformers.AutoModel.from_config(settings)  # pyright: ignore


def _conversion(model: Any, transforms: list[Any], shapes: Mapping[str, Shape]) -> Conversion:
    """As `transformers.core_model_loading.convert_and_load_state_dict_in_model` sorts a file's tensors."""
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    expected, prefix = model.state_dict(), model.base_model_prefix
    renamed: dict[str, str] = {}
    together: dict[
        str, list[tuple[str, str]]
    ] = {}  # first parameter -> tensors of the file, with the pattern each matched
    for name in sorted(shapes, key=dot_natural_key):
        new, pattern = rename_source_key(name, renamings, converters, prefix, expected)
        if new not in expected and name in expected:
            new, pattern = name, None
        if new in expected and pattern is None:
            renamed[new] = name
        elif new in expected and pattern is not None:
            together.setdefault(new, []).append((name, pattern))
    converted: dict[str, Converted] = {}
    for first, sources in together.items():
        convert = _Convert(model, by_pattern[sources[0][1]], first, sources)
        files = {name: shapes[name] for name, _ in sources}
        try:
            made = convert({name: torch.empty(shape, device="meta") for name, shape in files.items()})
        except Exception:
            continue
        group = Converted(files, {name: tuple(tensor.shape) for name, tensor in made.items()}, convert)
        converted |= dict.fromkeys(group.params, group)
    return Conversion(renamed, converted, _tied(model))


def _tied(model: Any) -> dict[str, tuple[str, ...]]:
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {name: tuple(n for n in same if n != name) for same in names.values() if len(same) > 1 for name in same}


@dataclass(frozen=True)
class _Convert:
    """One converter of transformers at one place of a model."""

    model: Any
    converter: Any
    first: str
    sources: list[tuple[str, str]]

    def __call__(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(self.converter)
        for name, pattern in self.sources:
            converter.add_tensor(self.first, name, pattern, tensors[name])
        made = converter.convert(self.first, model=self.model, config=self.model.config)
        return {name: one[0] if isinstance(one, list) else one for name, one in made.items()}
