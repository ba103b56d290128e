"""A whole diagnosis: totals over modules, histories, sentences, the page; and that everything is JSON."""

import json
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
import torch

from perdure.diagnostics.positions import PositionSettings, Share
from perdure.diagnostics.report import diagnose
from perdure.diagnostics.words import percent, places, sentences, where
from perdure.errors import AdapterError, ConfigError
from perdure.ops.lowrank import LowRank
from perdure.report.diagnosis import colour, page

ONE = {"layers.0.q": torch.tensor([[1.0, 2.0]]), "layers.1.q": torch.tensor([[3.0], [4.0]])}
TWO = {"layers.0.q": torch.tensor([[-1.0, 2.0]]), "layers.1.q": torch.tensor([[3.0], [-4.0]])}


def test_totals_are_over_all_positions():
    pair = diagnose({"one": ONE, "two": TWO}).pairs[0]
    assert pair.overall.opposite.value == 2 / 4
    assert pair.modules["layers.0.q"].opposite_weighted.value == pytest.approx(1 / 5)
    assert pair.overall.opposite_weighted.value == pytest.approx(17 / 30, abs=1e-6), "(1 + 16) / (1 + 4 + 9 + 16)"
    assert pair.overall.cosine == pytest.approx((-1 + 4 + 9 - 16) / 30)
    # q0: the outer products' energy (5 * 5 with one output row: 25); q1: (3*3 - 4*4)^2 = 49
    assert pair.overall.awom == pytest.approx(25 + 49)
    assert pair.overall.awom_normalised == pytest.approx(74 / (25 + 25 * 25))


def test_one_update_described():
    own = diagnose({"one": ONE, "two": TWO}).updates[0].overall
    assert own.frobenius == pytest.approx(30**0.5)
    assert own.nuclear_norm == pytest.approx(5**0.5 + 5)
    assert own.mean_magnitude.value == pytest.approx(10 / 4)
    assert own.generalised_sparsity == pytest.approx(10 / (2 * 30**0.5))
    assert (own.largest, own.rank, own.effective_rank) == (pytest.approx(4), 1, pytest.approx(1))


def test_the_average_collision_rate_is_the_mean_over_pairs():
    updates = {str(i): {"m": torch.eye(2)[[i]]} for i in range(2)} | {"both": {"m": torch.ones(1, 2)}}
    diagnosis = diagnose(updates)
    assert [pair.overall.collision.value for pair in diagnosis.pairs] == [0, 0.5, 0.5]
    assert diagnosis.average_collision_rate == pytest.approx(1 / 3)


def test_history_compares_with_the_sum_of_all_before():
    updates = {name: {"m": torch.tensor([[value]])} for name, value in (("a", 3.0), ("b", -1.0), ("c", -1.0))}
    pairs = {(pair.first, pair.second): pair.overall for pair in diagnose(updates, history=True).pairs}
    assert set(pairs) == {("a", "b"), ("a + b", "c")}
    assert pairs["a + b", "c"].opposite.value == 1, "3 - 1 = 2 against -1"
    assert len(diagnose(updates, history=True).updates) == 3


def test_bad_input():
    with pytest.raises(ConfigError, match="at least two"):
        diagnose({"one": ONE})
    for looking in (PositionSettings(top=0), PositionSettings(rows=2.0), PositionSettings(threshold=-1.0)):
        with pytest.raises(ConfigError, match=r"--top and --sample .* shares in"):
            diagnose({"one": ONE, "two": TWO}, looking)
    with pytest.raises(AdapterError, match=r"'layers\.1\.q' is 2 x 1 in the first and 3 x 1 in the second"):
        diagnose({"one": ONE, "two": {**TWO, "layers.1.q": torch.ones(3, 1)}})


def test_json_has_no_not_a_number():
    zero = {"layers.0.q": torch.zeros(1, 2)}
    text = json.dumps(diagnose({"one": ONE, "zero": zero}).as_json(), allow_nan=False)
    assert json.loads(text)["pairs"][0]["overall"]["cosine"] is None


def conflicting(layers: range, fight: set[int]):
    """Two updates over v and q that oppose in v of the layers in `fight` and are unrelated elsewhere."""
    generator = torch.Generator().manual_seed(0)
    one, two = {}, {}
    for layer in layers:
        for kind in ("q_proj", "v_proj"):
            name = f"model.layers.{layer}.self_attn.{kind}"
            for update in (one, two):
                update[name] = LowRank(torch.randn(4, 64, generator=generator), torch.randn(96, 4, generator=generator))
            if kind == "v_proj" and layer in fight:
                two[name] = LowRank(one[name].A, -one[name].B)
    return {"sums": one, "prose": two}


def test_the_sentences_name_where_they_fight():
    lines = sentences(diagnose(conflicting(range(12), {8, 9, 10, 11})))
    assert "They fight in layers 8-11 of v_proj (100 % opposite by size)." in lines
    assert any(
        "They share an input direction (closer than 30 degrees) in layers 8-11 of v_proj" in line for line in lines
    )
    unrelated = sentences(diagnose(conflicting(range(2), set())))
    assert "are unrelated in sign" in unrelated[0]
    assert not any("fight" in line for line in unrelated)


def test_the_sentence_on_flips_says_that_a_zero_written_to_counts():
    diagnosis = diagnose({"one": {"q": torch.tensor([[1.0, 0.0]])}, "two": {"q": torch.tensor([[1.0, 1.0]])}})
    (line,) = (line for line in sentences(diagnosis) if line.startswith("Adding two"))
    assert line.startswith("Adding two changes the sign of 50.0 % of the entries of one, counting 0 as a third sign")


def test_the_sentences_on_size_and_on_nothing_in_common():
    assert any(
        "10 times as large" in line
        for line in sentences(diagnose({"one": ONE, "big": {n: 10 * d for n, d in ONE.items()}}))
    )
    assert "no module in common" in sentences(diagnose({"one": ONE, "other": {"x": torch.ones(1, 1)}}))[0]


def test_names_of_places():
    modules = ["encoder.block.0.layer.0.q", "decoder.block.0.layer.0.q", "decoder.block.11.layer.0.q", "head"]
    assert places(modules) == {
        "encoder.block.0.layer.0.q": ("encoder.block.layer.0.q", 0),
        "decoder.block.0.layer.0.q": ("decoder.block.layer.0.q", 0),
        "decoder.block.11.layer.0.q": ("decoder.block.layer.0.q", 11),
        "head": ("head", None),
    }
    known = [f"l.{i}.v" for i in range(9)]
    assert where(["l.1.v", "l.2.v", "l.3.v", "l.7.v"], known) == "layers 1-3, 7 of v"
    assert where(["head", "l.4.v"], [*known, "head"]) == "head, layer 4 of v"


def test_percentages():
    assert percent(Share(0.501)) == "50.1 %"
    assert percent(Share(0.501, 0.002)) == "50.1 ± 0.2 %"
    assert percent(Share(None)) == "nothing"


def test_the_page_stands_alone_and_escapes_names():
    updates = conflicting(range(3), {1})
    html = page(diagnose({"<script>alert(1)</script>": updates["sums"], 'a"b': updates["prose"]}))
    assert "<script" not in html
    assert "http" not in html
    tags = read(html).tags
    shaded = [attrs for tag, attrs in tags if tag == "td" and "title" in attrs]
    assert len(shaded) == 6, "three layers, two module types"
    assert any(
        attrs["style"] == f"background:{colour(1.0)}" and "layers.1.self_attn.v_proj" in attrs["title"]
        for attrs in shaded
    )


def test_the_page_can_be_used_with_the_keyboard_and_a_screen_reader():
    html = read(page(diagnose(conflicting(range(3), {1}))))
    every = [attrs for tag, attrs in html.tags if tag == "table"]
    captions = [attrs for tag, attrs in html.tags if tag == "caption"]
    regions = [attrs for _, attrs in html.tags if attrs.get("class") == "scroll"]
    assert len(every) == len(captions) == len(regions) == 4, "pairs, updates, the heat map and its numbers"
    assert all(attrs["tabindex"] == "0" and attrs["role"] == "region" and attrs["aria-label"] for attrs in regions)
    assert all(attrs.get("scope") in ("row", "col") for tag, attrs in html.tags if tag == "th")
    assert "model.layers.1.self_attn.v_proj" in html.words, "a module's whole name can be read without a pointer"
    assert any(attrs.get("name") == "viewport" for tag, attrs in html.tags if tag == "meta")


def read(html):
    """The page's tags with their attributes, and its pieces of text."""
    found = SimpleNamespace(tags=[], words=[])
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.tags.append((tag, dict(attrs)))
    parser.handle_data = found.words.append
    parser.feed(html)
    return found


def test_colours_by_hand():
    assert colour(0.5) == "rgb(255,255,255)"
    assert colour(1.0) == "rgb(255,77,77)"
    assert colour(0.25) == "rgb(77,77,255)"
