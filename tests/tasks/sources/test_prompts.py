"""O-LoRA's prompt strings for all 15 tasks, written out by hand around invented texts."""

import pytest

from perdure.errors import UnknownName
from perdure.tasks.sources.prompts import o_lora, sapt, slice_chat
from perdure.tasks.suites import describe

PARAGRAPH = "What is the sentiment of the following paragraph? Choose one from the option.\n"
TOPIC = "What is the topic of the following paragraph? Choose one from the option.\n"
LOGIC = 'What is the logical relationship between the "sentence 1" and the "sentence 2"? Choose one from the option.\n'
STARS = "Option: very negative, negative, neutral, positive, very positive \n"

GOLDEN = {
    "SC/amazon": (
        "Title: a kettle\nText: It boils.\n",
        f"Task:SC\nDataset:amazon\n{PARAGRAPH}{STARS}Title: a kettle\nText: It boils.\n\nAnswer:",
    ),
    "SC/yelp": ("Text: Good soup.\n", f"Task:SC\nDataset:yelp\n{PARAGRAPH}{STARS}Text: Good soup.\n\nAnswer:"),
    "SC/IMDB": ("A slow film.", f"Task:SC\nDataset:IMDB\n{PARAGRAPH}Option: Good, Bad \nA slow film.\nAnswer:"),
    "SC/SST-2": (
        "Text: a joy . ",
        f"Task:SC\nDataset:SST-2\n{PARAGRAPH}Option: Good, Bad \nText: a joy . \nAnswer:",
    ),
    "TC/agnews": (
        "Title: Rain\nText: It rained.\n",
        f"Task:TC\nDataset:agnews\n{TOPIC}Option: World, Sports, Business, Science or Technology \n"
        "Title: Rain\nText: It rained.\n\nAnswer:",
    ),
    "TC/dbpedia": (
        "Title: Oak\nText: A tree.",
        f"Task:TC\nDataset:dbpedia\n{TOPIC}Option: Company, Educational Institution, Artist, Athlete, Office Holder, "
        "Mean of Transportation, Building, Natural Place, Village, Animal, Plant, Album, Film, Written Work \n"
        "Title: Oak\nText: A tree.\nAnswer:",
    ),
    "TC/yahoo": (
        "Title: why\nQuestion: how\nAnswer: so",
        f"Task:TC\nDataset:yahoo\n{TOPIC}Option: Society & Culture, Science & Mathematics, Health, "
        "Education & Reference, Computers & Internet, Sports, Business & Finance, Entertainment & Music, "
        "Family & Relationships, Politics & Government \nTitle: why\nQuestion: how\nAnswer: so\nAnswer:",
    ),
    "NLI/MNLI": (
        "sentence 1: It is wet.\nsentence 2: It is dry.",
        f"Task:NLI\nDataset:MNLI\n{LOGIC}Option: neutral, entailment, contradiction \n"
        "sentence 1: It is wet.\nsentence 2: It is dry.\nAnswer:",
    ),
    "NLI/CB": (
        "sentence 1: a\nsentence 2: b",
        f"Task:NLI\nDataset:CB\n{LOGIC}Option: entailment, contradiction, neutral \nsentence 1: a\nsentence 2: b\nAnswer:",
    ),
    "NLI/RTE": (
        "sentence 1: a\nsentence 2: b",
        f"Task:NLI\nDataset:RTE\n{LOGIC}Option: contradiction, entailment \nsentence 1: a\nsentence 2: b\nAnswer:",
    ),
    "QQP/QQP": (
        "first sentence: a?\nsecond sentence: b?",
        'Task:QQP\nDataset:QQP\nWhether the "first sentence" and the "second sentence" have the same meaning? '
        "Choose one from the option.\nOption: False, True \nfirst sentence: a?\nsecond sentence: b?\nAnswer:",
    ),
    "BoolQA/BoolQA": (
        "question: is it\npassage: It is.",
        "Task:BoolQA\nDataset:BoolQA\nAccording to the following passage, is the question true or false? "
        "Choose one from the option.\nOption: True, False \nquestion: is it\npassage: It is.\nAnswer:",
    ),
    "MultiRC/MultiRC": (
        "paragraph: P \nquestion: Q?\ncandidate answer: C",
        "Task:MultiRC\nDataset:MultiRC\nAccording to the following passage and question, is the candidate answer true "
        "or false? Choose one from the option.\nOption: False, True \n"
        "paragraph: P \nquestion: Q?\ncandidate answer: C\nAnswer:",
    ),
    "WiC/WiC": (
        "word: bank\nA river bank.\nA savings bank.",
        "Task:WiC\nDataset:WiC\nGiven a word and two sentences, whether the word is used with the same sense in both "
        "sentence? Choose one from the option.\nOption: True, False \nword: bank\nA river bank.\nA savings bank.\nAnswer:",
    ),
    "COPA/COPA": (
        'Which sentence is the cause of "It is wet."? Choose one between A and B.\nA: It rained.\nB: It snowed.',
        'Task:COPA\nDataset:COPA\nWhich sentence is the cause of "It is wet."? Choose one between A and B.\n'
        "A: It rained.\nB: It snowed.\nAnswer:",
    ),
}


@pytest.mark.parametrize("path", GOLDEN)
def test_o_lora_prompt_by_hand(path: str) -> None:
    text, expected = GOLDEN[path]
    task_type, dataset = path.split("/")
    labels = describe("long")["tasks"][dataset]["labels"]
    assert o_lora(task_type, dataset, labels).replace("{text}", text) == expected


def test_the_golden_examples_are_all_of_the_long_benchmark() -> None:
    paths = {task["source"]["path"] for task in describe("long")["tasks"].values()}
    assert paths == set(GOLDEN)
    standard = describe("standard-cl")["tasks"]
    assert all(describe("long")["tasks"][name] == task for name, task in standard.items())


def test_unknown_type_names_the_known() -> None:
    with pytest.raises(UnknownName, match="BoolQA"):
        o_lora("BoolQ", "BoolQ", [])


def test_natural_instructions_prompts_by_hand() -> None:
    assert sapt("Say hello.").replace("{text}", "Ann") == (
        "Definition: Say hello.\n\nNow complete the following example -\nInput: Ann\nOutput: "
    )
    assert slice_chat("Say hello.").replace("{text}", "Ann") == "Say hello.\n\nInput: Ann"
