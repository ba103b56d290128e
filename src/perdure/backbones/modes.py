"""Single modules in eval mode for a while; `model.eval()` would change all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def not_training(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put these modules alone into eval mode; their children keep their modes."""
    active = [module for module in modules if module.training]
    for module in active:
        module.training = False
    try:
        yield
    finally:
        for module in active:
            module.training = True


def without_dropout(model: nn.Module) -> AbstractContextManager[None]:
    """Switch dropout off: what is measured on a model is measured without it.

    Every other module keeps its mode (checkpointing depends on that of its layers).
    """
    return not_training(module for module in model.modules() if isinstance(module, _DropoutNd))


def drops_out(model: nn.Module) -> bool:
    """Whether a dropout layer is active."""
    return any(module.training and module.p > 0 for module in model.modules() if isinstance(module, _DropoutNd))
