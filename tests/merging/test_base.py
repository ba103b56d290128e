"""Updates added to the weights of a base: sharded, transposed, cast; and every base that must be refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2Model

from perdure.errors import AdapterError
from perdure.merging.base import Base, write_with


def model_folder(folder, tensors=None, **config):
    folder.mkdir()
    tensors = tensors or {"model.layers.0.q.weight": torch.arange(6.0).view(3, 2), "lm_head.weight": torch.ones(5, 2)}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["XForCausalLM"], **config}))
    return folder


def whole(matrix):
    """An addition of a matrix of the stored shape."""
    return lambda: lambda start, stop, arena=None: matrix[start:stop]


def test_adds_to_the_named_tensor_and_copies_the_rest(tmp_path):
    base = Base(model_folder(tmp_path / "base"))
    (tmp_path / "base" / "tokenizer.json").write_text("{}")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"not copied")
    (tmp_path / "out").mkdir()
    write_with(base, tmp_path / "out", {"model.layers.0.q.weight": whole(torch.ones(3, 2))})
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found["model.layers.0.q.weight"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert torch.equal(found["lm_head.weight"], torch.ones(5, 2))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


def test_sums_are_rounded_once_and_cast_where_asked(tmp_path):
    weight = torch.full((1, 2), 1.0, dtype=torch.bfloat16)
    base = Base(model_folder(tmp_path / "base", {"m.weight": weight, "ids": torch.arange(3)}, dtype="bfloat16"))
    for name, dtype, lost in (("same", None, 1.0), ("wide", torch.float32, 0.0)):
        (tmp_path / name).mkdir()
        rounding = write_with(base, tmp_path / name, {"m.weight": whole(torch.full((1, 2), 1 / 512))}, dtype)
        assert rounding.share == lost, "all of the update, or nothing"
    (tmp_path / "part").mkdir()  # bf16 has 1 and 1 + 4/512 here, nothing between
    update = whole(torch.tensor([[3 / 512, 4 / 512]]))  # 3/512 becomes 4/512, 4/512 stays: 1/512 of 5/512 in norm
    assert write_with(base, tmp_path / "part", {"m.weight": update}).share == pytest.approx(1 / 5)
    same, wide = (load_file(tmp_path / name / "model.safetensors") for name in ("same", "wide"))
    assert same["m.weight"].tolist() == [[1, 1]], "bf16 has 8 bits"
    assert wide["m.weight"].tolist() == [[1 + 1 / 512] * 2]
    assert wide["ids"].dtype == torch.int64
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"


def test_the_licence_goes_with_the_weights(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "out").mkdir()
    save_file({"m.weight": torch.ones(1, 2)}, tmp_path / "base" / "model.safetensors")
    for name in ("config.json", "LICENSE", "Notice.rst", "events.log"):
        (tmp_path / "base" / name).write_text("{}")
    write_with(Base(tmp_path / "base"), tmp_path / "out", {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors",
        "config.json",
        "LICENSE",
        "Notice.rst",
    }


def test_all_that_makes_a_model_complete_goes_with_the_weights(tmp_path):
    """Tokenizers' files, the layers of sentence-transformers, chat templates; not what happens to lie beside them."""
    base = tmp_path / "base"
    complete = (
        "config.json",
        "qwen.tiktoken",
        "bpe.codes",
        "source.spm",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "additional_chat_templates/tool_use.jinja",
    )
    for name in (*complete, "checkpoint-10/config.json", "data/train.json", ".git/config.json"):
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text("{}")
    layers = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "3_Normalize"}, {"path": "../other"}]
    (base / "modules.json").write_text(json.dumps(layers))
    (tmp_path / "other").mkdir()
    (tmp_path / "out").mkdir()
    save_file({"m.weight": torch.ones(1, 2)}, base / "model.safetensors")
    write_with(Base(base), tmp_path / "out", {})
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"model.safetensors", *complete}
    (base / "modules.json").write_text("[1]")  # another tool's
    (tmp_path / "bare").mkdir()
    write_with(Base(base), tmp_path / "bare", {})
    assert not (tmp_path / "bare" / "1_Pooling").exists()


def test_what_else_lies_in_a_base_folder_stays_there(tmp_path):
    """An adapter saved into the base's folder, the index of an earlier sharded save, a trainer's records."""
    base = GPT2Model(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40, n_positions=8))
    base.save_pretrained(tmp_path / "base")
    strangers = (
        "adapter_config.json",
        "adapter_model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "trainer_state.json",
        "all_results.json",
        "merge.json",
        "run.json",
        "state.json",
        "optimizer.pt",
        "loss.txt",
        "NOTICE.bin",
    )
    for name in strangers:
        (tmp_path / "base" / name).write_text(
            json.dumps({"peft_type": "LORA", "weight_map": {"x": "model-1.safetensors"}})
        )
    (tmp_path / "out").mkdir()
    write_with(Base(tmp_path / "base"), tmp_path / "out", {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    merged = GPT2Model.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(merged.state_dict(), base.state_dict(), rtol=0, atol=0)


def test_all_that_a_tokenizer_or_a_processor_reads_goes_with_the_weights(tmp_path):
    """Names of files that transformers' own classes and sentence-transformers write."""
    base = model_folder(tmp_path / "base")
    listed = """
        tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt
        spiece.model sentencepiece.bpe.model tokenizer.model bpe.codes source.spm target.spm target_vocab.json
        vocab-src.json normalizer.json entity_vocab.json qwen.tiktoken tekken.json chat_template.jinja
        chat_template.json preprocessor_config.json video_preprocessor_config.json processor_config.json
        audio_tokenizer_config.json generation_config.json modules.json sentence_bert_config.json
        config_sentence_transformers.json modeling_own.py USE_POLICY.md License.txt COPYING
    """
    names = listed.split()
    for name in names:
        (base / name).write_text("[]")
    (tmp_path / "out").mkdir()
    write_with(Base(base), tmp_path / "out", {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "config.json", "model.safetensors"}


def test_the_index_names_what_is_there(tmp_path):
    base = tmp_path / "base"
    GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=8)).save_pretrained(
        base, max_shard_size="8KB"
    )
    index = base / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    shard = listed["weight_map"]["wte.weight"]
    index.write_text(json.dumps(listed | {"weight_map": {**listed["weight_map"], "gone.weight": shard}}))
    for name, dtype in (("same", None), ("half", torch.bfloat16)):
        (tmp_path / name).mkdir()
        write_with(Base(base), tmp_path / name, {}, dtype)
        written = json.loads((tmp_path / name / index.name).read_text())
        assert written["weight_map"] == listed["weight_map"]
        for tensor, file in written["weight_map"].items():
            assert tensor in load_file(tmp_path / name / file)


LINKED = ("config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json")


def linked_folder(folder, target_of):
    """A model folder; each of `LINKED` that `target_of` gives a target for is a link to it."""
    model_folder(folder)
    (folder / "1_Pooling").mkdir()
    for name, text in (
        ("tokenizer.json", "{}"),
        ("modules.json", '[{"path": "1_Pooling"}]'),
        ("1_Pooling/config.json", "{}"),
    ):
        (folder / name).write_text(text)
    for name in LINKED:
        if (target := target_of(folder / name)) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            (folder / name).rename(target)
            (folder / name).symlink_to(os.path.relpath(target, (folder / name).parent))
    return folder


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("place", ["elsewhere/secret", "base-2/secret"])
def test_a_link_out_of_the_base_is_not_followed(tmp_path, name, place):
    base = linked_folder(tmp_path / "base", lambda path: tmp_path / place if path == tmp_path / "base" / name else None)
    (tmp_path / "out").mkdir()
    with pytest.raises(AdapterError, match=rf"'{base / name}' is a link to '.*secret'.*Put the file itself there"):
        write_with(Base(base), tmp_path / "out", {})


def test_links_that_stay_in_the_folder_and_those_of_the_hubs_cache_are_followed(tmp_path):
    plain = linked_folder(tmp_path / "plain", lambda path: None)
    inside = linked_folder(
        tmp_path / "inside", lambda path: tmp_path / "inside" / "files" / path.name.replace("config", path.parent.name)
    )
    cache = tmp_path / "models--own--base"
    (cache / "snapshots").mkdir(parents=True)
    blobs = {name: cache / "blobs" / f"{index:040}" for index, name in enumerate(LINKED)}
    snapshot = cache / "snapshots" / ("0" * 40)
    linked_folder(snapshot, lambda path: blobs[str(path.relative_to(snapshot))])
    (tmp_path / "link").symlink_to(snapshot)  # of the base's folder itself
    for number, base in enumerate((plain, inside, snapshot, tmp_path / "link")):
        (out := tmp_path / f"out{number}").mkdir()
        write_with(Base(base), out, {})
        assert content(out) == content(tmp_path / "out0")
        assert not any(path.is_symlink() for path in out.rglob("*"))
    outside = linked_folder(cache / "other", lambda path: blobs[str(path.relative_to(cache / "other"))])
    with pytest.raises(AdapterError, match=r"config\.json' is a link"):
        Base(outside)  # beside the snapshots, not one of them


def test_links_to_folders_and_to_nothing_are_named(tmp_path):
    base = linked_folder(tmp_path / "base", lambda path: None)
    (tmp_path / "out").mkdir()
    (base / "checkpoint-1").symlink_to(tmp_path)  # belongs to nothing: neither followed nor refused
    (base / "notes.txt").symlink_to(tmp_path / "gone")
    write_with(Base(base), tmp_path / "out", {})
    assert not {"checkpoint-1", "notes.txt"} & {path.name for path in (tmp_path / "out").iterdir()}
    for name, target, reason in (
        ("1_Pooling/all", base, "is a link to"),
        ("additional_chat_templates", base / "1_Pooling", "is a link to"),
        ("vocab.json", base / "gone", "does not exist"),
    ):
        (base / name).symlink_to(target)
        (out := tmp_path / name.replace("/", "-")).mkdir()
        with pytest.raises(AdapterError, match=rf"'{base / name}'.*{reason}"):
            write_with(Base(base), out, {})
        (base / name).unlink()


def test_shards_of_a_real_model(tmp_path):
    model = GPT2Model(GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=40, n_positions=8))
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    base = Base(tmp_path / "base")
    assert len(base.files) > 1
    target = base.target("h.1.attn.c_attn", (48, 16), "linear", True)
    assert (target.tensor, target.transposed) == ("h.1.attn.c_attn.weight", True)
    (tmp_path / "out").mkdir()
    update = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    write_with(base, tmp_path / "out", {target.tensor: whole(update.mT)})
    merged = GPT2Model.from_pretrained(tmp_path / "out")
    for name, weight in model.state_dict().items():
        added = update.mT if name == target.tensor else 0
        torch.testing.assert_close(merged.state_dict()[name], weight + added)


@pytest.mark.parametrize(
    ("module", "found"),
    [("model.layers.0.q", "exact"), ("layers.0.q", "model. missing"), ("bert.model.layers.0.q", "one more")],
)
def test_a_leading_part_of_the_name_may_differ(tmp_path, module, found):
    base = Base(model_folder(tmp_path / "base"))
    assert base.target(module, (3, 2), "linear", False).tensor == "model.layers.0.q.weight", found


def test_refusals(tmp_path):
    base = Base(model_folder(tmp_path / "base"))
    with pytest.raises(AdapterError, match=r"needs a weight of 3 x 4, 'model\.layers\.0\.q\.weight' in .* is 3 x 2"):
        base.target("model.layers.0.q", (3, 4), "linear", False)
    with pytest.raises(AdapterError, match="is the transpose of what the adapter's fan_in_fan_out says"):
        base.target("model.layers.0.q", (3, 2), "linear", True)
    with pytest.raises(AdapterError, match=r"'layers\.9\.q' of the adapter has no weight"):
        base.target("layers.9.q", (3, 2), "linear", False)
    ambiguous = {
        "a.q.weight": torch.ones(1, 1),
        "b.q.weight": torch.ones(1, 1),
        "w": torch.ones(2, 2, dtype=torch.int8),
    }
    twice = Base(model_folder(tmp_path / "twice", {**ambiguous, "m.weight": torch.ones(2, 2, dtype=torch.int8)}))
    with pytest.raises(AdapterError, match="2 tensors have that ending"):
        twice.target("q", (1, 1), "linear", False)
    with pytest.raises(AdapterError, match="stored as I8"):
        twice.target("m", (2, 2), "linear", False)


@pytest.mark.parametrize(
    ("config", "has_head"), [({"tie_word_embeddings": True}, True), ({}, False)], ids=["stated", "no head in the file"]
)
def test_tied_embeddings_are_refused(tmp_path, config, has_head):
    tensors = {"model.embed_tokens.weight": torch.ones(5, 2)} | (
        {"lm_head.weight": torch.ones(5, 2)} if has_head else {}
    )
    base = Base(model_folder(tmp_path / "base", tensors, **config))
    with pytest.raises(AdapterError, match="tied embeddings"):
        base.target("model.embed_tokens", (2, 5), "embedding", True)
    with pytest.raises(AdapterError, match="tied embeddings"):
        base.target("lm_head", (5, 2), "linear", False)


@pytest.mark.parametrize(
    ("config", "tensor"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "bert.embeddings.word_embeddings.weight"),
        ({"architectures": ["T5Model"], "is_encoder_decoder": True, "tie_word_embeddings": False}, "shared.weight"),
        ({"text_config": {"tie_word_embeddings": True, "vocab_size": 5}}, "model.embed_tokens.weight"),
    ],
    ids=["masked", "encoder and decoder", "stated inside"],
)
def test_embeddings_with_a_second_user_are_refused(tmp_path, config, tensor):
    base = Base(model_folder(tmp_path / "base", {tensor: torch.ones(5, 2)}, **config))
    with pytest.raises(AdapterError, match="tied embeddings"):
        base.target(tensor.removesuffix(".weight"), (2, 5), "embedding", True)


def test_position_embeddings_of_a_tied_model_are_nobody_elses(tmp_path):
    tensors = {"wte.weight": torch.ones(5, 2), "wpe.weight": torch.ones(4, 2)}
    base = Base(model_folder(tmp_path / "base", tensors, vocab_size=5, tie_word_embeddings=True))
    assert base.target("wpe", (2, 4), "embedding", True).transposed
    with pytest.raises(AdapterError, match="tied embeddings"):
        base.target("wte", (2, 5), "embedding", True)


def test_the_base_knows_which_of_its_modules_are_conv1d(tmp_path):
    """An adapter of both kinds has one fan_in_fan_out for all, and a square weight would not show that it is wrong."""
    tensors = {"h.0.attn.c_proj.weight": torch.ones(2, 2), "head.weight": torch.ones(2, 2)}
    base = Base(model_folder(tmp_path / "base", tensors, model_type="gpt2"))
    for stated in (True, False):
        assert base.target("h.0.attn.c_proj", (2, 2), "linear", stated).transposed
        assert not base.target("head", (2, 2), "linear", stated).transposed


def test_untied_embeddings_are_transposed(tmp_path):
    tensors = {"model.embed_tokens.weight": torch.ones(5, 2), "lm_head.weight": torch.ones(5, 2)}
    base = Base(model_folder(tmp_path / "base", tensors, tie_word_embeddings=False))
    assert base.target("model.embed_tokens", (2, 5), "embedding", True).transposed


def test_bad_folders(tmp_path):
    with pytest.raises(AdapterError, match=r"it has no config\.json"):
        Base(tmp_path)
    with pytest.raises(AdapterError, match="is quantised"):
        Base(model_folder(tmp_path / "q", quantization_config={"bits": 4}))
    pickled = model_folder(tmp_path / "p")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(AdapterError, match="only pickled weights, which are refused"):
        Base(pickled)
    (pickled / "config.json").write_text("[]")
    with pytest.raises(AdapterError, match="expected a JSON object"):
        Base(pickled)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".hidden.safetensors", 3]
)
def test_a_shard_index_cannot_point_elsewhere(tmp_path, file):
    folder = model_folder(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(AdapterError, match="is not the file name of a shard"):
        Base(folder)


def test_a_missing_shard_is_named(tmp_path):
    folder = model_folder(tmp_path / "base")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "a.safetensors"}}))
    with pytest.raises(AdapterError, match=r"names 'a\.safetensors', which is missing"):
        Base(folder)
