"""Files import each other in no circle, imports for type checking included; that rooms import down is lint-imports' part."""

from __future__ import annotations

import graphlib

import grimp


def test_no_circle_of_files() -> None:
    graph = grimp.build_graph("perdure", cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert len(imports) > 200
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the circle
