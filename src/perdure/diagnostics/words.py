"""A diagnosis in plain sentences, and short names of modules."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from perdure.diagnostics.report import Diagnosis, Pair, Share, Single

FIGHT, AGREE = 0.55, 0.45
"""Weighted opposite-sign shares beyond which two updates fight or agree; unrelated ones are within a few
thousandths of .5 (the cosine of random updates has a standard deviation of 1 / sqrt(O I))."""
NEAR = 30.0
"""Angle in degrees below which two directions count as shared."""


def number(value: float | None) -> str:
    """Four significant digits; empty for None."""
    return "" if value is None else f"{value:.4g}"


def sentences(diagnosis: Diagnosis) -> list[str]:
    """A few sentences on every pair, in order."""
    sizes = {single.name: single for single in diagnosis.updates}
    return [line for pair in diagnosis.pairs for line in _about(pair, sizes, diagnosis)]


def places(modules: Iterable[str]) -> dict[str, tuple[str, int | None]]:
    """Module -> (short name of its type, layer number); 'model.layers.8.self_attn.v_proj' -> ('v_proj', 8).

    The type is the module's name without its first number, cut to the shortest ending that no other type shares.
    """
    split = {module: _split(module) for module in modules}
    short = _shortest({kind for kind, _ in split.values()})
    return {module: (short[kind], layer) for module, (kind, layer) in split.items()}


def where(modules: Sequence[str], known: Iterable[str]) -> str:
    """'layers 8-11 of v_proj, layer 3 of q_proj'; among the `known` modules, the short names must be distinct.

    >>> where(["l.1.v", "l.2.v", "l.5.q"], ["l.1.v", "l.2.v", "l.5.q"])
    'layers 1-2 of v, layer 5 of q'
    """
    placed, layers = places(known), defaultdict[str, list[int]](list)
    for kind, layer in (placed[module] for module in modules):
        layers[kind] += [] if layer is None else [layer]
    return ", ".join(f"{_ranges(numbers)} of {kind}" if numbers else kind for kind, numbers in layers.items())


def percent(share: Share) -> str:
    """'50.1 %', with its confidence interval where it is an estimate: '50.1 ± 0.2 %'."""
    if share.value is None:
        return "nothing"
    margin = f" ± {100 * share.half_width:.1f}" if share.half_width > 0 else ""
    return f"{100 * share.value:.1f}{margin} %"


def _about(pair: Pair, sizes: Mapping[str, Single], diagnosis: Diagnosis) -> list[str]:
    one, two, overall = pair.first, pair.second, pair.overall
    if not pair.modules:
        return [f"{one} and {two} have no module in common; their sum is exact and neither affects the other."]
    weighted = overall.opposite_weighted
    value = 0.5 if weighted.value is None else weighted.value
    verdict = "fight" if value > FIGHT else "agree" if value < AGREE else "are unrelated in sign"
    lines = [
        f"{one} and {two} {verdict}: weighted by size, {percent(weighted)} of what they have in common has opposite signs "
        f"(unrelated updates: 50 %); {percent(overall.opposite)} of all positions do."
    ]
    lines += _located(pair)
    lines.append(
        f"Adding {two} changes the sign of {percent(overall.flip)} of the entries of {one}, counting 0 as a third sign "
        f"(equal in size and unrelated: 25 %); both write to {percent(overall.collision)} of the positions (above "
        f"{diagnosis.looking.threshold:g} x their root mean square)."
    )
    if one in sizes and two in sizes and sizes[one].overall.frobenius > 0:
        ratio = sizes[two].overall.frobenius / sizes[one].overall.frobenius
        if not 0.5 <= ratio <= 2:
            lines.append(f"{two} is {ratio:.2g} times as large as {one}: in a plain sum the larger one decides.")
    return lines


def _located(pair: Pair) -> list[str]:
    """Where they fight, where they agree, and where they share directions."""
    lines = []
    shares = [(module, both.opposite_weighted) for module, both in pair.modules.items()]
    known = {module: (share.value, share.half_width) for module, share in shares if share.value is not None}
    fighting = {module: value for module, (value, margin) in known.items() if value > FIGHT and value - margin > 0.5}
    agreeing = {module: value for module, (value, margin) in known.items() if value < AGREE and value + margin < 0.5}
    for verb, located in (("fight", fighting), ("agree", agreeing)):
        if located and len(located) < len(known):
            ends = dict.fromkeys(f"{100 * value:.0f}" for value in (min(located.values()), max(located.values())))
            span = f"{'-'.join(ends)} % opposite by size"
            lines.append(f"They {verb} in {where(list(located), pair.modules)} ({span}).")
    angles = {module: both.smallest_input_angle for module, both in pair.modules.items()}
    near = [module for module, angle in angles.items() if angle is not None and angle < NEAR]
    if near:
        lines.append(f"They share an input direction (closer than {NEAR:g} degrees) in {where(near, pair.modules)}.")
    return lines


def _split(module: str) -> tuple[str, int | None]:
    """The name without its first number, and that number."""
    parts = module.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdecimal()), None)
    return (module, None) if place is None else (".".join(parts[:place] + parts[place + 1 :]), int(parts[place]))


def _shortest(kinds: set[str]) -> dict[str, str]:
    """Each kind's shortest dotted ending that no other kind has."""
    short = {}
    for kind in kinds:
        parts = kind.split(".")
        endings = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        others = kinds - {kind}
        short[kind] = next((end for end in endings if not any(o == end or o.endswith("." + end) for o in others)), kind)
    return short


def _ranges(numbers: Sequence[int]) -> str:
    """'layers 1-3, 7' of [1, 2, 3, 7]."""
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda item: item[1] - item[0])
    values = [[number for _, number in run] for _, run in runs]
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in values)
    return f"layers {text}" if re.search(r"[-,]", text) else f"layer {text}"
