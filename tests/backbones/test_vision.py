"""Vision transformers on images of plain colours: class means by hand, hostile files, mixed sizes."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
)

from perdure.backbones import vision
from perdure.backbones.images import read_image
from perdure.backbones.vision import Vision, VisionSettings, class_means, ridge_head
from perdure.errors import ConfigError, DataError
from perdure.tasks.task import Example, Task
from tests.backbones.precisions import check_bf16
from tests.backbones.tiny import tiny_images, tiny_vision

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Task:
    found = tiny_images(tmp_path_factory.mktemp("images"), COLOURS, each=6)
    pairs = {split: [(str(p), label) for label, paths in found.items() for p in paths[part]]
             for split, part in {"train": slice(0, 4), "test": slice(4, 6)}.items()}  # fmt: skip
    return Task("colours", train=pairs["train"], test=pairs["test"], labels=dict.fromkeys(COLOURS, ""))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Task:
    found = tiny_images(tmp_path_factory.mktemp("light"), {"dark": (25, 25, 25), "bright": (225, 225, 225)}, each=3)
    pairs = [(str(p), label) for label, paths in found.items() for p in paths]
    return Task("light", train=pairs[:2] + pairs[3:5], test=pairs, labels={"dark": "", "bright": ""})


def load(folder: Path, *tasks: Task, **settings) -> Vision:
    backbone = Vision.load(VisionSettings(model=str(folder), **settings))
    backbone.prepare(tasks)
    return backbone


def shift(backbone: Vision, seed: int) -> None:
    """Other weights, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1 * float(parameter.std() or 0.1))


def test_scores_are_cosines_to_centred_class_means_by_hand() -> None:
    features = {("t", "a"): torch.tensor([[1.0, 0.0], [3.0, 0.0]]), ("t", "b"): torch.tensor([[0.0, 2.0]])}
    classifier = class_means(features)  # means (2, 0) and (0, 2), centre (1, 1), directions (1, -1) and (-1, 1)
    found = classifier.scores(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), temperature=0.5)
    root = 2**-0.5
    torch.testing.assert_close(found, torch.tensor([[2 * root, -2 * root], [0.0, 0.0]]))


def test_a_ridge_head_points_from_class_to_class_by_hand() -> None:
    features = {("t", "a"): torch.tensor([[1.0, 5.0]]), ("t", "b"): torch.tensor([[3.0, 5.0]])}
    head = ridge_head(features)  # centred -1 and 1 in the first direction, nothing in the second
    found = head.scores(torch.tensor([[1.0, 7.0]]), temperature=1.0)
    # gram diag (2, 0), mean 1, ridge 1: weight of class a = -(1 + 1) / (2 + 1)
    torch.testing.assert_close(found, torch.tensor([[2 / 3, -2 / 3]]))


def test_colours_are_told_apart_and_sizes_may_differ(folder: Path, colours: Task) -> None:
    assert len({read_image(e.text).size for e in colours.train}) > 1
    backbone = load(folder, colours, predict_batch_size=4)
    found = backbone.predict(colours.test, ["colours"])
    assert [p.label for p in found] == [e.label for e in colours.test]
    assert all(p.task == "colours" and sum(p.probabilities) == pytest.approx(1) for p in found)


def test_prediction_uses_the_weights_in_place_training_the_pretrained_means(folder: Path, colours: Task) -> None:
    backbone = load(folder, colours)
    batch = backbone.collate(colours.test)
    before = backbone.scores(batch, None, "colours")
    shift(backbone, seed=1)
    fresh = load(folder, colours)
    shift(fresh, seed=1)
    images = backbone.features(fresh.collate(colours.train))
    labels = [e.label for e in colours.train]
    by_class = {("colours", c): images[[i for i, one in enumerate(labels) if one == c]] for c in COLOURS}
    expected = class_means(by_class).scores(backbone.features(batch), 0.1).softmax(dim=1)
    found = torch.tensor([p.probabilities for p in backbone.predict(colours.test, ["colours"])])
    torch.testing.assert_close(found, expected.detach())
    # the frame that training sees is still that of the pretrained model
    head = backbone._head(("colours",))
    assert torch.equal(head.weight, load(folder, colours)._head(("colours",)).weight)
    assert not torch.allclose(backbone.scores(batch, None, "colours"), before)


def test_the_loss_is_cross_entropy_among_the_own_tasks_classes(folder: Path, colours: Task, light: Task) -> None:
    backbone = load(folder, colours, light)
    mixed = [colours.train[0], light.train[3], colours.train[8]]
    batch = backbone.collate(mixed)
    outputs = backbone.forward(batch)
    assert batch.count == 3
    by_both = backbone._head(("colours", "light")).scores(backbone.features(batch), 0.1)
    losses = [
        functional.cross_entropy(by_both[0:1, :3], torch.tensor([0])),
        functional.cross_entropy(by_both[1:2, 3:], torch.tensor([1])),
        functional.cross_entropy(by_both[2:3, :3], torch.tensor([2])),
    ]
    torch.testing.assert_close(outputs.loss, sum(losses) / 3)


def test_bf16_is_near_fp32_and_not_fp32(folder: Path, colours: Task) -> None:
    backbone = load(folder, colours)
    check_bf16(backbone, backbone.collate(colours.train))


def test_heads_are_shared_by_batches_of_the_same_tasks_and_few_are_kept(
    folder: Path, colours: Task, light: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load(folder, colours, light)
    one, other = (
        backbone.collate([light.train[0], colours.train[0]]),
        backbone.collate([colours.train[0], light.train[0]]),
    )
    assert one.extra["names"] == other.extra["names"] == ("colours", "light")
    torch.testing.assert_close(backbone.forward(one).loss, backbone.forward(other).loss)
    assert list(backbone._heads) == [("colours", "light")]
    monkeypatch.setattr(vision, "HEADS", 2)
    for names in (("light",), ("colours",), ("light",)):
        backbone._head(names)
    assert list(backbone._heads) == [("light",), ("colours",)]


def test_the_mean_leaves_the_token_for_distillation_out() -> None:
    config = DeiTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
    model = DeiTModel(config).eval()
    backbone = Vision(model, None, VisionSettings(model="made", pooling="mean"))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        hidden = model(pixel_values=pixels).last_hidden_state
        assert hidden.shape[1] == 2 + 4
        torch.testing.assert_close(backbone._encode(pixels), hidden[:, 2:].mean(dim=1))


def test_the_mean_is_over_patches_not_over_registers() -> None:
    config = Dinov2WithRegistersConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8, num_register_tokens=3
    )
    model = Dinov2WithRegistersModel(config).eval()
    backbone = Vision(model, None, VisionSettings(model="made", pooling="mean"))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        hidden = model(pixel_values=pixels).last_hidden_state
        assert hidden.shape[1] == 1 + 3 + 4
        torch.testing.assert_close(backbone._encode(pixels), hidden[:, 4:].mean(dim=1))


def test_a_model_without_a_class_token_has_a_mean_over_all_its_patches_only() -> None:
    config = SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=2)
    model = SwinModel(config).eval()
    with pytest.raises(ConfigError, match=r"no class token.*Set backbone\.pooling to mean"):
        Vision(model, None, VisionSettings(model="made"))
    backbone = Vision(model, None, VisionSettings(model="made", pooling="mean"))
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=pixels).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(backbone._encode(pixels), expected)


def test_learning_lowers_the_loss(folder: Path, colours: Task) -> None:
    backbone = load(folder, colours, temperature=2.0)
    batch = backbone.collate(colours.train)
    optimiser = torch.optim.SGD(backbone.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(4):
        loss = backbone.forward(batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("classifier", ["class-mean", "linear"])
def test_all_labels_seen_compete(folder: Path, colours: Task, light: Task, classifier: str) -> None:
    backbone = load(folder, colours, light, classifier=classifier)
    found = backbone.predict(light.test, ["colours", "light"])
    assert all(len(p.probabilities) == 5 for p in found)
    right = sum(p.task == "light" and p.label == e.label for p, e in zip(found, light.test, strict=True))
    assert right >= 5


def test_a_linear_head_is_kept_and_needs_no_images(folder: Path, colours: Task, tmp_path: Path) -> None:
    backbone = load(folder, colours, classifier="linear")
    backbone.predict(colours.test, ["colours"])
    backbone.forward(backbone.collate(colours.train)).loss.backward()  # answering first leaves the head trainable on
    head = backbone._head(("colours",))
    shift(backbone, seed=1)
    feature = backbone.features(backbone.collate(colours.test)).detach()
    expected = head.scores(feature, 0.1).softmax(dim=1)
    found = torch.tensor([p.probabilities for p in backbone.predict(colours.test, ["colours"])])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("classifier", ["class-mean", "linear"])
def test_what_is_saved_answers_the_same_in_plain_transformers(
    folder: Path, colours: Task, tmp_path: Path, classifier: str
) -> None:
    backbone = load(folder, colours, classifier=classifier)
    shift(backbone, seed=2)
    backbone.save(tmp_path, backbone.model.state_dict())
    model, saved = AutoModel.from_pretrained(tmp_path).eval(), load_file(tmp_path / "classes.safetensors")
    batch = backbone.collate(colours.test)
    with torch.no_grad():
        centred = model(**batch.inputs).last_hidden_state[:, 0] - saved["colours.centre"]
    unit = functional.normalize(centred, dim=1) if classifier == "class-mean" else centred
    best = (unit @ saved["colours.weight"]).argmax(dim=1).tolist()
    answers = [p.label for p in backbone.predict(colours.test, ["colours"])]
    assert [list(COLOURS)[i] for i in best] == answers


def test_a_larger_image_interpolates_the_positions(folder: Path, colours: Task) -> None:
    backbone = load(folder, colours, image_size=32)
    batch = backbone.collate(colours.test)
    assert batch.inputs["pixel_values"].shape[-2:] == (32, 32)
    assert backbone.features(batch).shape == (6, 32)
    with pytest.raises(ConfigError, match="image_size=20 is not a multiple of 8"):
        load(folder, colours, image_size=20)


def test_images_may_be_data_uris(folder: Path, colours: Task) -> None:
    backbone = load(folder, colours)
    content = base64.b64encode(Path(colours.test[0].text).read_bytes()).decode()
    uri = Example(f"data:image/png;base64,{content}", "red", "colours")
    path = Example(colours.test[0].text, "red", "colours")
    assert backbone.predict([uri], ["colours"]) == backbone.predict([path], ["colours"])


def test_pretrained_features_are_those_of_fp32_whenever_they_are_measured(folder: Path, colours: Task) -> None:
    """A run measures them before it sets its precision; `predict` and `rollback` after."""
    begun, reopened = load(folder, colours), load(folder)
    reopened.precision = "bf16"
    reopened.prepare([colours])
    assert reopened.precision == "bf16"
    for one, feature_ND in begun._pretrained.items():
        assert torch.equal(reopened._pretrained[one], feature_ND)


def test_checkpointing_changes_memory_not_gradients(folder: Path, colours: Task) -> None:
    grads = []
    for on in (False, True):
        backbone = load(folder, colours, gradient_checkpointing=on)
        assert backbone.default_targets == ("q_proj", "v_proj")
        backbone.forward(backbone.collate(colours.train)).loss.backward()
        grads.append(next(p.grad for n, p in backbone.model.named_parameters() if n.endswith("q_proj.weight")))
    torch.testing.assert_close(grads[0], grads[1])


# bad input


def test_images_of_mixed_size_without_resizing_are_refused(folder: Path, colours: Task) -> None:
    backbone = Vision.load(VisionSettings(model=str(folder)))
    backbone.processor.do_resize = False
    with pytest.raises(DataError, match=r"differ in size .*set backbone\.image_size"):
        backbone.prepare([colours])


def test_a_missing_or_broken_image_is_named(folder: Path, colours: Task, tmp_path: Path) -> None:
    backbone = load(folder, colours)
    with pytest.raises(DataError, match=r"No such image: '.*nowhere\.png'"):
        backbone.predict([Example(str(tmp_path / "nowhere.png"), "red", "colours")], ["colours"])
    with pytest.raises(DataError, match=f"relative to the data file .*current folder, '{Path.cwd()}'"):
        backbone.predict([Example("nowhere.png", "red", "colours")], ["colours"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image at all")
    with pytest.raises(DataError, match=r"broken\.png' is not an image"):
        backbone.predict([Example(str(broken), "red", "colours")], ["colours"])
    with pytest.raises(DataError, match="its base64 is damaged"):
        backbone.predict([Example("data:image/png;base64,???", "red", "colours")], ["colours"])


def test_a_model_of_texts_and_images_is_refused_and_its_part_for_images_taken() -> None:
    small: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 16, "patch_size": 8})
    with pytest.raises(ConfigError, match=r"'made' \(CLIPModel\) also reads texts\. .*CLIPVisionModel"):
        Vision(CLIPModel(config), None, VisionSettings(model="made"))
    images = Vision(CLIPVisionModel(config.vision_config), None, VisionSettings(model="made"))
    assert images.features(vision.Batch((), {"pixel_values": torch.randn(2, 3, 16, 16)}, 2)).shape == (2, 16)


def test_a_class_without_images_and_a_task_without_classes_are_refused(folder: Path, colours: Task) -> None:
    backbone = load(folder)
    with pytest.raises(DataError, match=r"no training image of class yellow\. Raise budget\.train"):
        backbone.prepare([Task("more", colours.train, test=colours.test, labels={**colours.labels, "yellow": ""})])
    with pytest.raises(DataError, match="has no labels"):
        backbone.prepare([Task("free", colours.train, test=colours.test)])
