"""A base model's folder: where each module's weight is, and a copy of the folder with updates added to some weights.

Sharded or not, of any size: weights pass through memory in row tiles, untouched tensors as bytes. What cannot come out
right is refused with the reason: quantised weights, tied embeddings, pickles.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from perdure.adapters.format import read_object
from perdure.adapters.weights import PICKLED
from perdure.errors import AdapterError
from perdure.merging.base_files import CONFIG, INDEX_FILE, SINGLE_FILE, check_link, copy_beside
from perdure.merging.conversion import Conversion, Converted, read_conversion
from perdure.merging.fold import RowsOf
from perdure.merging.rounding import Rounding
from perdure.merging.tensor_files import DTYPES, Stored, TensorReader, TensorWriter
from perdure.ops.parallel import over_rows
from perdure.ops.tiling import Arena

NAMES = {dtype: name for name, dtype in DTYPES.items()}
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
CONV1D_LAYERS = {"c_attn", "q_attn", "c_proj", "c_fc"}
"""In models of those types, layers of these names are transformers' Conv1D, stored as [I, O]; all others are linear, [O, I]."""
HEADS = ("lm_head.weight", "predictions.decoder.weight", "lm_head.decoder.weight", "vocab_projector.weight")
"""Name endings of output heads over the vocabulary; a model class with a head whose file has none of these has tied it."""
WITH_HEAD = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForMaskedLM", "ForPreTraining")


@dataclass(frozen=True)
class Target:
    """A module's weight.

    Args:
        tensor: its name in the file; of a converted one, the parameter's in the model.
        transposed: whether it is [I, O] there (Conv1D, embeddings).
        converted: how it comes out of the file's tensors, where transformers does more than rename one.
    """

    tensor: str
    transposed: bool
    converted: Converted | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """The tensors of the file that it is stored in."""
        return (self.tensor,) if self.converted is None else tuple(self.converted.files)


class Base:
    """A model folder in safetensors; an AdapterError for another folder, pickles, missing shards, quantised weights, links."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not os.path.isfile(self.folder / CONFIG):
            raise AdapterError(
                f"'{self.folder}' is not a model folder: it has no config.json. Give the folder of the base model."
            )
        check_link(self.folder, self.folder / CONFIG)
        self.config = read_object(self.folder / CONFIG)
        if self.config.get("quantization_config"):
            raise AdapterError(
                f"'{self.folder}' is quantised: an update cannot be added to it exactly. Give the full model."
            )
        text = self.config.get("text_config")  # of a multimodal model
        self._settings = {**(text if isinstance(text, dict) else {}), **self.config}
        self.files = _weight_files(self.folder)
        self.place: dict[str, tuple[str, Stored]] = {}
        for file in self.files:
            check_link(self.folder, self.folder / file)
            with TensorReader(self.folder / file) as reader:
                self.place |= {name: (file, stored) for name, stored in reader.tensors.items()}

    @cached_property
    def conversion(self) -> Conversion:
        """How transformers loads these files."""
        return read_conversion(
            self.folder, self.config, {name: stored.shape for name, (_, stored) in self.place.items()}
        )

    @property
    def tied(self) -> bool:
        """Whether the output head is the input embedding."""
        stated = self._settings.get("tie_word_embeddings")
        has_head = any(str(arch).endswith(WITH_HEAD) for arch in self.config.get("architectures") or [])
        return bool(stated) if stated is not None else has_head and not any(n.endswith(HEADS) for n in self.place)

    def target(self, module: str, shape: tuple[int, int], kind: str, transposed: bool) -> Target:
        """The weight of `module` that updates of `shape` (O, I) can be added to.

        Args:
            transposed: whether the adapter says that it is stored as [I, O] (Conv1D, embeddings).

        Raises:
            AdapterError: it is missing, has another shape or an integer type, or is tied to another module.
        """
        shared = self._is_shared(module, shape, kind)
        if shared or (target := self.weight_of(module, shape, kind, transposed)).tensor in self._tied_files:
            raise AdapterError(
                f"'{module}' shares its weight with another module in '{self.folder}' (tied embeddings, shared layers); merging "
                "into one would change the other too. Keep it as an adapter, or untie the base first."
            )
        for name in target.files:
            stored = self.place[name][1]
            if stored.torch_dtype is None or not stored.torch_dtype.is_floating_point:
                raise AdapterError(
                    f"'{name}' in '{self.folder}' is stored as {stored.dtype}; give a base in bf16, fp16 or fp32."
                )
        return target

    @property
    def _tied_files(self) -> set[str]:
        """Weights that several modules of the model share, by `Target.tensor`."""
        return {self.conversion.renamed.get(name, name) for name in self.conversion.tied}

    def _is_shared(self, module: str, shape: tuple[int, int], kind: str) -> bool:
        """Whether another module has the same weight: a tied head, or an embedding common to encoder and decoder."""
        if f"{module}.weight" in self.conversion.tied:
            return True
        if kind == "embedding":
            of_tokens = self._settings.get("vocab_size") in (None, shape[1])  # else of positions or token types
            return of_tokens and (self.tied or bool(self.config.get("is_encoder_decoder")))
        return self.tied and module.rpartition(".")[2] in ("lm_head", "decoder")

    def transposed(self, module: str, kind: str, stated: bool) -> bool:
        """Whether the weight is stored as [I, O].

        PEFT keeps one `fan_in_fan_out` per adapter, that of the last module it saw, which is wrong for some modules of an
        adapter that mixes Conv1D and linear ones; a square weight would not show it. Known models therefore ignore it.
        """
        if kind == "linear" and self.config.get("model_type") in CONV1D_MODELS:
            return module.rpartition(".")[2] in CONV1D_LAYERS
        return stated

    def weight_of(self, module: str, shape: tuple[int, int], kind: str, transposed: bool) -> Target:
        """The weight of `module`; an AdapterError if it is missing or has another shape."""
        if kind == "expert":
            raise AdapterError(
                f"'{module}' is one of many experts in one parameter; such adapters are merged into one another, not into the "
                "files of a base. Merge without a base, and load the result with PEFT (merge_and_unload)."
            )
        target = self._find(module, self.transposed(module, kind, transposed))
        name, converted = target.tensor, target.converted
        stored = self.place[name][1].shape if converted is None else converted.params[name]
        wanted = (shape[1], shape[0]) if target.transposed else shape
        if stored == wanted[::-1] != wanted:
            raise AdapterError(
                f"'{name}' in '{self.folder}' is the transpose of what the adapter's fan_in_fan_out says "
                f"for module '{module}'. Correct it in adapter_config.json, or train Conv1D and linear modules separately."
            )
        if stored != wanted:
            raise AdapterError(
                f"The adapter is of another base: at module '{module}' it needs a weight of {wanted[0]} x {wanted[1]}, "
                f"'{name}' in '{self.folder}' is {' x '.join(map(str, stored))}."
            )
        return target

    def tensor(self, name: str) -> str | None:
        """The file's tensor that holds a parameter of the model as it is; None if there is none."""
        known = self.conversion.renamed.get(name, name)
        return known if known in self.place and name not in self.conversion.converted else None

    def _find(self, module: str, transposed: bool) -> Target:
        """`<module>.weight` in the model or in the file, even if they differ by a leading part ('model.', 'bert.')."""
        wanted, known = f"{module}.weight", self.conversion

        def place(name: str) -> tuple[str, Converted | None]:
            return known.renamed.get(name, name), known.converted.get(name)

        if wanted in known.params or wanted in self.place:
            return Target(place(wanted)[0], transposed, place(wanted)[1])
        shorter = module.partition(".")[2]
        names = [
            n
            for n in (*known.params, *self.place)
            if n.endswith("." + wanted) or (shorter and n == f"{shorter}.weight")
        ]
        found = list(dict.fromkeys(map(place, names)))
        if len(found) != 1:
            also = f"; {len(found)} tensors have that ending" if found else ""
            raise AdapterError(
                f"Module '{module}' of the adapter has no weight in '{self.folder}'{also}. Is this the adapter's base?"
            )
        return Target(found[0][0], transposed, found[0][1])


Addition = Callable[[], RowsOf]
"""What to add to a stored tensor, by rows; called when the tensor is written."""


def write_with(
    base: Base,
    out: Path,
    additions: Mapping[str, Addition],
    dtype: torch.dtype | None = None,
    replaced: Mapping[str, Tensor] | None = None,
) -> Rounding:
    """Copy the base's folder to `out` (an existing, empty folder), with `additions` added to the tensors they name.

    `replaced` are other tensors of the same shapes in the place of the base's. Returns what rounding took of the additions.

    Sums are formed in fp32 (float64 where the base is) and rounded once, to the base's dtype or to `dtype`; an AdapterError if
    one is not finite there.
    """
    rounding = Rounding()
    for file in base.files:
        with TensorReader(base.folder / file) as reader:
            layout = {name: (_dtype_after(stored, dtype), stored.shape) for name, stored in reader.tensors.items()}
            with TensorWriter(out / file, layout, reader) as writer:
                for name, stored in reader.tensors.items():
                    if replaced is not None and name in replaced:
                        writer.write_rows(name, 0, replaced[name].reshape(stored.height, -1))
                    elif name in additions or layout[name][0] != stored.dtype:
                        _write_rows(writer, name, reader, additions[name]() if name in additions else None, rounding)
                    else:
                        writer.copy(name, reader)
    _write_beside(base, out, dtype)
    return rounding


def _write_rows(
    writer: TensorWriter, name: str, reader: TensorReader, added: RowsOf | None, rounding: Rounding
) -> None:
    stored_as = writer.tensors[name].torch_dtype

    def work(start: int, stop: int, arena: Arena) -> None:
        weight = reader.rows(name, start, stop, arena)
        if added is not None:
            rows, columns = weight.shape
            wide = arena.empty(rows, columns, torch.promote_types(weight.dtype, torch.float32))
            update = added(start, stop, arena)
            weight = wide.copy_(weight).add_(update)
            if stored_as is not None and stored_as.itemsize < wide.dtype.itemsize:
                rounding.count(weight, stored_as, update)
        writer.write_rows(name, start, weight, arena, carried=added is None)

    stored = reader.tensors[name]
    width = max(1, stored.row_bytes // 2) if added is None else stored.shape[1]
    over_rows((stored.height, width), work)


def _dtype_after(stored: Stored, dtype: torch.dtype | None) -> str:
    floating = stored.torch_dtype is not None and stored.torch_dtype.is_floating_point
    return NAMES[dtype] if dtype is not None and floating else stored.dtype


def _write_beside(base: Base, out: Path, dtype: torch.dtype | None) -> None:
    copy_beside(base.folder, out)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        config = {key: value for key, value in base.config.items() if key != "torch_dtype"} | {"dtype": name}
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    if base.files != [SINGLE_FILE]:  # else an index there is another save's, and names shards that are not this model's
        index = read_object(base.folder / INDEX_FILE) | {"weight_map": {name: at[0] for name, at in base.place.items()}}
        if dtype is not None:
            index["metadata"] = {"total_size": sum((out / file).stat().st_size for file in base.files)}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _weight_files(folder: Path) -> list[str]:
    if (folder / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    index = folder / INDEX_FILE
    if not index.is_file():
        pickled = any(folder.glob("*.bin"))
        reason = PICKLED if pickled else "no weights"
        raise AdapterError(f"'{folder}' has {reason}. A base needs {SINGLE_FILE}, or shards with {INDEX_FILE}.")
    check_link(folder, index)
    try:
        files = sorted(set(read_object(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise AdapterError(f"{index}: not what transformers writes ({error}).") from error
    for file in files:
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", file):
            raise AdapterError(f"{index}: {file!r} is not the file name of a shard in this folder.")
        if not (folder / file).is_file():
            raise AdapterError(f"{index} names '{file}', which is missing; copy or download the base again.")
    return files
