"""Converted models compute what the files they come from compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from perdure.backbones.models import MODELS, model_folder
from perdure.tasks.sources.archives import member
from perdure.tasks.sources.packages import package_file

pytestmark = [pytest.mark.package_data, pytest.mark.slow]


def run_onnx(content: bytes, inputs: dict[str, np.ndarray], output: str) -> np.ndarray:
    """The tensor `output` of an ONNX graph, by onnx's own reference evaluator (slow, no runtime needed)."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load_model_from_string(content)
    wanted, nodes = {output}, []
    for node in reversed(model.graph.node):  # only what leads to `output`: nodes stand in order of execution
        if wanted.intersection(node.output):
            wanted.update(node.input)
            nodes.insert(0, node)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.append(onnx.ValueInfoProto(name=output))
    return ReferenceEvaluator(model).run(None, inputs)[0]


def loaded(name: str, auto: Any = AutoModel) -> Any:
    """The model, every weight from its file."""
    model, info = auto.from_pretrained(model_folder(name), output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


def normalised_output(content: bytes, weight: str) -> str:
    """Name of the tensor right after the LayerNorm that has this bias."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_model_from_string(content).graph
    return [
        node.output[0] for node in graph.node if node.op_type in ("Add", "LayerNormalization") and weight in node.input
    ][-1]


def test_minilm_l3_is_the_exported_model() -> None:
    model, tokenizer = loaded("minilm-l3"), AutoTokenizer.from_pretrained(model_folder("minilm-l3"))
    batch = tokenizer(["A cat sat on the mat.", "Interest rates rose again"], padding=True, return_tensors="pt")
    content = member(package_file("minilm-l3"), "paraphrase-MiniLM-L3-v2.onnx")
    inputs = {name: batch[name].numpy() for name in ("input_ids", "attention_mask")}
    last = normalised_output(content, "model.0.auto_model.encoder.layer.2.output.LayerNorm.bias")
    expected = torch.from_numpy(run_onnx(content, inputs, last))
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(hidden[real], expected[real], atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for n, p in model.named_parameters() if "pooler" not in n) == pytest.approx(17.2e6, rel=0.01)


def test_dinov2_small_is_the_exported_backbone() -> None:
    model = loaded("dinov2-small")
    content = member(package_file("dinov2-small"), "vit_s_focus.onnx")
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    last = normalised_output(content, "backbone.layernorm.bias")
    expected = torch.from_numpy(run_onnx(content, {"input_image": pixels.numpy()}, last))
    with torch.no_grad():
        hidden = model(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(hidden, expected, atol=1e-4, rtol=1e-3)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(22.06e6, rel=0.001)


def test_smollm2_has_the_files_own_weights() -> None:
    """Against gguf's dequantisation, without transformers in between."""
    gguf = pytest.importorskip("gguf")

    def dequantised(tensor: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type)))

    folder = Path(model_folder("smollm2-135m"))
    weights = load_file(folder / "model.safetensors")
    file = folder.parent / "parity.gguf"
    file.write_bytes(member(package_file("smollm2-135m"), "SmolLM2-135M-Instruct.Q4_1.gguf"))
    try:
        tensors = {t.name: t for t in gguf.GGUFReader(file).tensors}
        pairs = {
            "token_embd.weight": "model.embed_tokens.weight",
            "output_norm.weight": "model.norm.weight",
            "blk.0.attn_v.weight": "model.layers.0.self_attn.v_proj.weight",
            "blk.29.ffn_down.weight": "model.layers.29.mlp.down_proj.weight",
            "blk.7.attn_norm.weight": "model.layers.7.input_layernorm.weight",
        }
        for there, here in pairs.items():
            expected = dequantised(tensors[there]).reshape(weights[here].shape)
            torch.testing.assert_close(weights[here], expected, rtol=0, atol=0)
        # llama.cpp interleaves the two halves of every head's rotation in query and key
        stored = dequantised(tensors["blk.3.attn_q.weight"]).view(9, 32, 2, 576)
        halves = stored.transpose(1, 2).reshape(576, 576)
        torch.testing.assert_close(weights["model.layers.3.self_attn.q_proj.weight"], halves, rtol=0, atol=0)
        assert len(weights) == len(tensors)
        del tensors  # the file is mapped into memory
    finally:
        file.unlink()


def test_smollm2_knows_the_capital_of_france_and_word_order() -> None:
    model = loaded("smollm2-135m", AutoModelForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(model_folder("smollm2-135m"))
    ids = tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        written = model.generate(**ids, max_new_tokens=2, do_sample=False)
        text = "The sun rises in the east and sets in the west, and the moon follows it through the night."
        words = text.split()
        shuffled = " ".join(words[i] for i in torch.randperm(len(words), generator=torch.Generator().manual_seed(0)))
        losses = []
        for given in (text, shuffled):
            batch = tokenizer(given, return_tensors="pt")
            losses.append(model(**batch, labels=batch["input_ids"]).loss.item())
    assert "Paris" in tokenizer.decode(written[0])
    assert losses[0] < losses[1] - 2
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.tokenize("2024") == list("2024")  # digits one by one, as it was trained


@pytest.mark.parametrize("name", ["minilm", "minilm-l3", "smollm2-135m", "dinov2-small"])
def test_every_known_model_states_where_it_comes_from(name: str) -> None:
    assert MODELS[name].hub.count("/") == 1
    assert MODELS[name].about
