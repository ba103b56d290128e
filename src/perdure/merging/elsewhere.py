"""What other tools call their merge rules, and what perdure has instead: hints go by meaning, never by how a name is spelt."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from perdure.errors import nearest

MEANINGS: Mapping[str, str] = {
    "linear": "Use 'average' for mergekit's linear, which divides by the sum of the weights, 'arithmetic' for the weighted sum "
    "of updates; PEFT's linear adds A and B separately (--like peft)",
    "task-arithmetic": "Use 'arithmetic', the weighted sum of updates",
    "cat": "Use 'arithmetic', which is exact as PEFT's cat is, at the smallest rank that holds it",
    "svd": "Use 'arithmetic' with --rank: PEFT's svd is the weighted sum of updates, cut to a rank",
    "mean": "Use 'average'",
    "model-soup": "Use 'average'",
    "model-soups": "Use 'average'",
    "weighted-average": "Use 'average' with weights",
    "ties-svd": "Use 'ties' with scope=tensor, elect=total and divide=count; with --like peft the name works as it is",
    "dare-linear": "Use 'dare' (PEFT's drops entries of A and B: --like peft; mergekit's rescales by L1: --like mergekit)",
    "dare-linear-svd": "Use 'dare'",
    "dare-ties": "Use 'dare' with consensus=ties (mergekit's does not normalise: --like mergekit; PEFT's drops entries of A and "
    "B: --like peft)",
    "dare-ties-svd": "Use 'dare' with consensus=ties, elect=total and divide=count",
    "magnitude-prune-svd": "Use 'magnitude-prune'",
    "magprune": "Use 'della'",
    "della-linear": "Use 'della' with consensus=sum",
    "breadcrumbs-ties": "Use 'breadcrumbs' with consensus=ties",
    "model-breadcrumbs": "Use 'breadcrumbs'",
    "nuslerp": "Use 'slerp' with t = w2 / (w1 + w2); with --like mergekit the name works as it is",
    "karcher-mean": "Use 'karcher'",
    "fusechat": "Use 'sce'",
    "ps-lora": "Use 'max-magnitude'",
    "regmean": "Use 'covariance-gain' with kappa=1 and against=others, which is RegMean on updates",
    "arcee-fusion": "It weighs entries by a softmax over the base's own weights, which an update does not have; use 'sce' or "
    "'breadcrumbs'",
    "ramplus-tl": "RAM+ is not here; use 'ram'",
    "passthrough": "It stacks layers of whole models; adapters have no layers to stack. Use 'sum'",
    "fisher": "Fisher merging needs gradients on each task; use 'covariance-gain', which weighs updates by their inputs",
}
"""A rule's name elsewhere, with hyphens -> what to use."""


def hint(name: str, known: Collection[str]) -> str | None:
    """What to use for a rule of that name: by meaning, or if it is a known name but for a letter or two; else None."""
    spelt = name.casefold().strip().replace("_", "-").removesuffix("-merging")
    names = {one: one for one in MEANINGS} | {one.replace("_", "-"): one for one in known}
    found = names.get(spelt) or nearest(spelt, names, cutoff=0.85) or ""
    if found in MEANINGS and found not in known:
        return f"{MEANINGS[found]}."
    return f"Did you mean '{found}'?" if found else None
