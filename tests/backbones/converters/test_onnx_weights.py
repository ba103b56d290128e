"""Linear weights are found again in an ONNX graph that renamed and transposed them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from perdure.backbones.converters.onnx_weights import check_names, named_weights, under
from perdure.errors import ConfigError, FetchError


def exported(weight: np.ndarray, bias: np.ndarray, bias_first: bool) -> bytes:
    """What torch's exporter makes of `net.linear`: MatMul with the transposed weight, then Add with the named bias."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    added = ["net.linear.bias", "product"] if bias_first else ["product", "net.linear.bias"]
    nodes = [
        helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["product"]),
        helper.make_node("Add", added, ["y"]),
    ]
    values = [
        numpy_helper.from_array(weight.T.copy(), "onnx::MatMul_7"),
        numpy_helper.from_array(bias, "net.linear.bias"),
    ]
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    return helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize("bias_first", [False, True])
def test_a_linear_weight_gets_its_name_and_layout_back(bias_first: bool) -> None:
    weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(2, dtype=np.float32)
    found = under(named_weights(exported(weight, bias, bias_first)), "net.")
    assert found.keys() == {"linear.weight", "linear.bias"}
    assert torch.equal(found["linear.weight"], torch.from_numpy(weight))


def test_another_model_is_refused() -> None:
    found = {"a": torch.zeros(2), "b": torch.zeros(3)}
    check_names(found, {"a": (2,), "b": (3,)}, "this")
    with pytest.raises(FetchError, match="does not hold this: 1 weights differ, the first is b"):
        check_names(found, {"a": (2,), "b": (4,)}, "this")
    with pytest.raises(FetchError, match="2 weights differ, the first is b"):
        check_names(found, {"a": (2,), "c": (3,)}, "this")


def test_without_onnx_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match="pip install onnx"):
        named_weights(b"")
