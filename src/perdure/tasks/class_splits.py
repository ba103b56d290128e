"""Suites that cut one large data set into 5, 10 or 20 tasks of consecutive classes, one order each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_class_splits(about: Mapping[str, Any]) -> dict[str, Any]:
    """Replace `class_splits` in a suite's description with `tasks` and `orders`; other descriptions are unchanged.

    The third of ten tasks is called <prefix>-10-03; its reader gets `classes`, number -> label.
    """
    expanded = dict(about)
    cut = expanded.pop("class_splits", None)
    if cut is None:
        return expanded
    orders = expanded["orders"] = {}
    tasks = expanded["tasks"] = {}
    for count in cut["into"]:
        size = len(cut["classes"]) // count
        for i in range(count):
            numbers = range(i * size, (i + 1) * size)
            name = f"{cut['prefix']}-{count}-{i + 1:02}"
            orders.setdefault(str(count), []).append(name)
            classes = {number: cut["classes"][number] for number in numbers}
            tasks[name] = {
                "about": f"{cut['about']} Classes {numbers[0]} to {numbers[-1]}.",
                "licence": cut["licence"],
                "source": {**cut["source"], "classes": classes},
                "labels": list(classes.values()),
            }
    return expanded
