"""What a configuration asks of a suite."""

from __future__ import annotations

from typing import Any

from perdure.config.run_config import load_config
from perdure.state.reopen import load_configured_suite
from perdure.tasks.suites import Suite


def asked(config: dict[str, Any]) -> dict[str, Any]:
    """What the loader is called with."""
    found: dict[str, Any] = {}

    def load(name: str, **settings: Any) -> Suite:
        found.update(name=name, **settings)
        return Suite(name, 1, "", (), ())

    load_configured_suite(load_config(config), load)
    return found


def test_order_budget_and_the_seed_of_the_data_reach_the_suite() -> None:
    """Not the seed of the training; and no limit means all."""
    config = {
        "suite": "quickstart",
        "order": "reversed",
        "seed": 5,
        "data_seed": 3,
        "budget": {"train": 7, "validation": None, "test": 9},
    }
    assert asked(config) == {
        "name": "quickstart",
        "order": "reversed",
        "data": None,
        "protocol": "perdure",
        "train": 7,
        "validation": "all",
        "test": 9,
        "seed": 3,
    }


def test_a_folder_and_no_examples_at_all() -> None:
    found = asked({"suite": "own.yaml", "data": "/files", "budget": {"train": None, "validation": 0, "test": None}})
    assert (found["data"], found["train"], found["validation"], found["test"]) == ("/files", "all", 0, "all")
