"""Scores of label texts under a language model, with the prompt computed once for all labels.

Legend: N prompts, P prompt positions, T tree nodes, L labels, V vocabulary.

    score(label | prompt) = sum (or mean) over the label's tokens, its terminator included, of log p(token | before it)

With the terminator, "positive" and "positive attitude" are different answers and neither can win by being a prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from perdure.backbones.device import model_device
from perdure.backbones.prefix import Prefix, cached
from perdure.backbones.tokens import padded
from perdure.errors import DataError

BLOCKED = -65504.0  # float16's lowest: exp() of it is 0 in every dtype, and a bf16 copy stays finite

NOISE = {torch.float32: 1e-4, torch.float16: 8e-3, torch.bfloat16: 6e-2}
"""How far rounding moves a score s, over 1 + |s|. Measured between packed and exhaustive ranking: two-layer Llama, Qwen3,
GPT-2, Mixtral at most 2e-7, 8e-5, 3e-4; SmolLM2-135M, of 30 layers, 1e-6, 2e-3, 2e-2; times three or more for deeper ones."""

Reduction = Literal["sum", "mean"]


@dataclass(frozen=True, eq=False)
class LabelTree:
    """Label texts as a prefix tree: what is fed to the model, and which of its predictions make up each score.

    Args:
        tokens: [T] token of each node; parents come before children.
        depth: [T] its position after the prompt, from 0.
        sees: [T, T] bool, whether node i may attend to node j (itself and its ancestors).
        source: [terms] where the prediction is read: 0 = the prompt's last position, 1 + t = node t.
        target: [terms] the token whose log-probability counts.
        label: [terms] the label it counts for.
        lengths: [L] number of terms of each label.
    """

    tokens: Tensor
    depth: Tensor
    sees: Tensor
    source: Tensor
    target: Tensor
    label: Tensor
    lengths: Tensor


def label_tree(completions: Sequence[Sequence[int]]) -> LabelTree:
    """The tree of token sequences, each ending with its terminator (which is predicted, never fed).

    Raises:
        DataError: no labels.
    """
    if not completions:
        raise DataError("There are no labels to rank; give the task labels, or answer by generation.")
    nodes: dict[tuple[int, ...], int] = {}
    for ids in completions:
        for length in range(1, len(ids)):
            nodes.setdefault(tuple(ids[:length]), len(nodes))
    terms = [
        (1 + nodes.get(tuple(ids[:length]), -1), token, label)  # no node before the first token: the prompt
        for label, ids in enumerate(completions)
        for length, token in enumerate(ids)
    ]
    sees = torch.eye(len(nodes), dtype=torch.bool)
    for prefix, node in nodes.items():
        if len(prefix) > 1:
            sees[node] |= sees[nodes[prefix[:-1]]]
    tokens = torch.tensor([prefix[-1] for prefix in nodes], dtype=torch.long)
    source, target, label = torch.tensor(terms).T
    lengths = torch.tensor([len(ids) for ids in completions])
    return LabelTree(tokens, sees.sum(dim=1) - 1, sees, source, target, label, lengths)


def label_chains(completions: Sequence[Sequence[int]], start: int) -> LabelTree:
    """Every label as a separate chain that begins with `start`: what the decoder of an encoder-decoder is fed.

    `source` counts positions of the chains from 0; there is no prompt among them.
    """
    lengths = torch.tensor([len(ids) for ids in completions])
    label = torch.arange(len(completions)).repeat_interleave(lengths)
    tokens = torch.tensor([token for ids in completions for token in (start, *ids[:-1])])
    target = torch.tensor([token for ids in completions for token in ids])
    place = torch.arange(len(tokens))
    sees = (label[:, None] == label) & (place[:, None] >= place)
    return LabelTree(tokens, sees.sum(dim=1) - 1, sees, place, target, label, lengths)


def tree_scores(logits_NSV: Tensor, tree: LabelTree, reduction: Reduction) -> Tensor:
    """Scores [N, L] from the logits at the prompt's last position and at every node (S = 1 + T)."""
    logits_NSV = at_least_fp32(logits_NSV)
    device = logits_NSV.device
    source, target, label = tree.source.to(device), tree.target.to(device), tree.label.to(device)
    log_p = logits_NSV[:, source, target] - logits_NSV.logsumexp(dim=-1)[:, source]
    scores = log_p.new_zeros(len(log_p), len(tree.lengths)).index_add(1, label, log_p)
    return scores / tree.lengths.to(device) if reduction == "mean" else scores


def logits_at(model: nn.Module, positions: Tensor, **inputs: Any) -> Tensor:
    """The model's logits [m, V] at the m true `positions` [N, length] only, row by row.

    The vocabulary projection, a fifth of SmolLM2-135M's work, is computed for these positions alone.
    """
    head = model.get_output_embeddings()  # pyright: ignore[reportCallIssue]
    chosen = positions.flatten().nonzero().squeeze(1)

    def select(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        return (hidden.reshape(-1, hidden.shape[-1])[chosen].unsqueeze(0), *args[1:])

    hook = head.register_forward_pre_hook(select)
    try:
        return model(**inputs, use_cache=False).logits[0]
    finally:
        hook.remove()


def packed_scores(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    tree: LabelTree,
    reduction: Reduction = "sum",
    prefix: Prefix | None = None,
) -> Tensor:
    """Scores [N, L] in one forward pass of a decoder: every prompt once, followed by the whole tree.

    A node sees its prompt and its ancestors; its position is the one it would have right after the prompt. What all prompts
    begin with may be given as `prefix`; P then counts the rest.
    """
    known = len(prefix.ids) if prefix else 0
    ids_NP, real_NP = padded([prompt[known:] for prompt in prompts], 0)
    n, width, t = len(ids_NP), ids_NP.shape[1], len(tree.tokens)
    lengths_N = real_NP.sum(dim=1)
    ids = torch.cat([ids_NP, tree.tokens.expand(n, t)], dim=1)
    position = torch.cat([torch.arange(width).expand(n, width), lengths_N[:, None] + tree.depth], dim=1)

    allowed = torch.zeros(n, width + t, width + t, dtype=torch.bool)
    allowed[:, :width, :width] = torch.ones(width, width, dtype=torch.bool).tril()
    allowed[:, width:, :width] = real_NP[:, None, :]
    allowed[:, width:, width:] = tree.sees
    allowed = functional.pad(allowed, (known, 0), value=True)  # all see the prefix

    wanted = torch.zeros(n, width + t, dtype=torch.bool)
    wanted[torch.arange(n), lengths_N - 1] = True
    wanted[:, width:] = True
    device = model_device(model)
    logits = logits_at(
        model,
        wanted.to(device),
        input_ids=ids.to(device),
        attention_mask=additive_mask(model, allowed)[:, None],
        position_ids=(known + position).to(device),
        **(cached(model, prefix.lent) if prefix else {}),
    )
    return tree_scores(logits.view(n, 1 + t, -1), tree, reduction)


def additive_mask(model: nn.Module, allowed: Tensor) -> Tensor:
    """0 where attention is `allowed` (bool) and `BLOCKED` elsewhere, in the model's dtype and on its device."""
    mask = torch.zeros(allowed.shape, dtype=model_dtype(model)).masked_fill_(~allowed, BLOCKED)
    return mask.to(model_device(model))


def agree(model: nn.Module, one_NL: Tensor, other_NL: Tensor) -> bool:
    """Whether two scorings differ by no more than rounding in the model's number format."""
    tolerance = NOISE.get(model_dtype(model), NOISE[torch.float32])
    return bool(((one_NL - other_NL).abs() <= tolerance * (1 + other_NL.abs())).all())  # NaN agrees with nothing


def at_least_fp32(tensor: Tensor) -> Tensor:
    """In fp32 or float64: sums of log-probabilities need it."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def model_dtype(model: nn.Module) -> torch.dtype:
    """The floating-point type the model computes in (a quantised model also has integer parameters)."""
    return next(p.dtype for p in model.parameters() if p.is_floating_point())
