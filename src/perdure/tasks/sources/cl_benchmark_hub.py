"""CL_Benchmark's fifteen sets from the hub: the same sources, with the same wording and label names.

How the papers sampled their files is undocumented; these are other samples, from the full sets, so scores only approximate
the published ones. Amazon's five stars come from another collection of its reviews. At most `MOST` rows per split are drawn,
always the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import DataError
from perdure.tasks.pool import Pair
from perdure.tasks.sources.hub import dataset_rows, filled

MOST = 20_000
TRUTH = ("False", "True")
NLI = "sentence 1: {premise}\nsentence 2: {hypothesis}"


@dataclass(frozen=True)
class HubForm:
    """Where a set is on the hub, and how its fields become a sentence and a label."""

    dataset: str
    config: str | None
    text: str  # template of the sentence, with fields in braces
    names: Sequence[str] = ()  # by the number in field `label`, if they are not in CL_Benchmark's order
    test: str = "test"  # split to test on; another one if the test labels are secret
    label: str = "label"


HUB_FORMS: dict[str, HubForm] = {
    "TC/dbpedia": HubForm("fancyzhx/dbpedia_14", None, "Title: {title}\nText: {content}"),
    "TC/agnews": HubForm("fancyzhx/ag_news", None, "Text: {text}"),
    "TC/yahoo": HubForm(
        "community-datasets/yahoo_answers_topics",
        None,
        "Title: {question_title}\nQuestion: {question_content}\nAnswer: {best_answer}",
        label="topic",
    ),
    "SC/amazon": HubForm("SetFit/amazon_reviews_multi_en", None, "Text: {text}"),
    "SC/yelp": HubForm("Yelp/yelp_review_full", None, "Text: {text}"),
    "SC/IMDB": HubForm("stanfordnlp/imdb", None, "{text}", ("Bad", "Good")),
    "SC/SST-2": HubForm("nyu-mll/glue", "sst2", "Text: {sentence}", ("Bad", "Good"), test="validation"),
    "NLI/MNLI": HubForm(
        "nyu-mll/glue", "mnli", NLI, ("entailment", "neutral", "contradiction"), test="validation_matched"
    ),
    "NLI/CB": HubForm("aps/super_glue", "cb", NLI, ("entailment", "contradiction", "neutral"), test="validation"),
    "NLI/RTE": HubForm("aps/super_glue", "rte", NLI, ("entailment", "contradiction"), test="validation"),
    "QQP/QQP": HubForm(
        "nyu-mll/glue", "qqp", "first sentence: {question1}\nsecond sentence: {question2}", TRUTH, test="validation"
    ),
    "BoolQA/BoolQA": HubForm(
        "aps/super_glue", "boolq", "question: {question}\npassage: {passage}", TRUTH, test="validation"
    ),
    "MultiRC/MultiRC": HubForm(
        "aps/super_glue",
        "multirc",
        "paragraph: {paragraph}\nquestion: {question}\ncandidate answer: {answer}",
        TRUTH,
        test="validation",
    ),
    "WiC/WiC": HubForm("aps/super_glue", "wic", "word: {word}\n{sentence1}\n{sentence2}", TRUTH, test="validation"),
    "COPA/COPA": HubForm(
        "aps/super_glue",
        "copa",
        'Which sentence is the {question} of "{premise}"? Choose one between A and B.\nA: {choice1}\nB: {choice2}',
        ("A", "B"),
        test="validation",
    ),
}
"""Path in CL_Benchmark -> its hub form."""


def hub_pairs(path: str, labels: Sequence[str]) -> tuple[list[Pair], list[Pair]]:
    """(training, test) pairs of one set, whose labels in CL_Benchmark are `labels`.

    Raises:
        DataError: a row has other fields or labels; FetchError: the hub cannot be read.
    """
    form = HUB_FORMS[path]
    names = form.names or labels
    train: list[Pair] = []
    test: list[Pair] = []
    for split, pairs in (("train", train), (form.test, test)):
        for row in dataset_rows(form.dataset, form.config, split, MOST, numbers=True):
            text, number = filled(form.text, row), row.fields.get(form.label)
            if number is None or number not in range(len(names)):
                raise DataError(f"{row.where}: label {number!r} is not a number from 0 to {len(names) - 1}.")
            pairs.append((text, names[int(number)]))
    return train, test
