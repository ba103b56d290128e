"""Whole tensors that adapters bring beside their updates, held against the base they are merged into."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from perdure.adapters.beside import same_values
from perdure.adapters.weights import FROZEN, FrozenTensor
from perdure.errors import AdapterError
from perdure.merging.base import Base
from perdure.merging.tensor_files import TensorReader


def check_embeddings(base: Base, brought: Mapping[str, FrozenTensor]) -> None:
    """Raise an AdapterError unless the base's own tensors that adapters bring (see `frozen_beside`) are those of `base`."""
    for name, tensor in brought.items():
        plain = name.replace(FROZEN, ".")
        held = [
            known for one in (plain, *base.conversion.tied.get(plain, ())) if (known := base.tensor(one)) is not None
        ]
        if held and not same_values(tensor.read(), _read(base, held[0])):
            raise AdapterError(
                f"'{tensor.place}' brings its base's '{plain}' (PEFT saves embeddings that were resized or adapted), and "
                f"'{base.folder}' has another. Save the base that it was trained on as a model (save_pretrained), and give that."
            )


def heads_in(base: Base, heads: Mapping[str, FrozenTensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors of the base's files -> those of the head that take their place; and a note if the base has no place for them."""
    replaced: dict[str, Tensor] = {}
    for name, tensor in heads.items():
        held, own = base.tensor(name), tensor.read()
        if held is None or base.place[held][1].shape != tuple(own.shape):
            return {}, (
                f"WARNING: the head ('{name}' of '{tensor.place}') was left out: '{base.folder}' has none of that shape. "
                "It stays in the adapter's folder; to merge it too, give a base saved with a head of as many classes.",
            )
        replaced[held] = own
    return replaced, ()


def _read(base: Base, name: str) -> Tensor:
    file, stored = base.place[name]
    with TensorReader(base.folder / file) as reader:
        return reader.rows(name, 0, stored.height).view(stored.shape)
