"""Suites that cut one large set into tasks of consecutive classes: 5, 10 or 20 of them, an order each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def with_class_splits(about: Mapping[str, Any]) -> dict[str, Any]:
    """A suite's description with `tasks` and `orders` in place of its `class_splits`; others as they are.

    The third of ten tasks is called <prefix>-10-03; its reader is told `classes`, number -> label.
    """
    if "class_splits" not in about:
        return dict(about)
    cut = about["class_splits"]
    tasks: dict[str, Any] = {}
    orders: dict[str, list[str]] = {}
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
    return {**{key: value for key, value in about.items() if key != "class_splits"}, "orders": orders, "tasks": tasks}
