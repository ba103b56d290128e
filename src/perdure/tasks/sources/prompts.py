"""Prompts of the published benchmarks, as templates with "{text}" where an example's text belongs."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import UnknownName

O_LORA_INSTRUCTIONS: dict[str, str] = {
    "SC": "What is the sentiment of the following paragraph?",
    "TC": "What is the topic of the following paragraph?",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?',
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "BoolQA": "According to the following passage, is the question true or false?",
    "MultiRC": "According to the following passage and question, is the candidate answer true or false?",
    "WiC": "Given a word and two sentences, whether the word is used with the same sense in both sentence?",
    "COPA": "",
}
"""Task type -> instruction of O-LoRA (arXiv 2310.14152, instruction_config.json in its repository), verbatim."""


def o_lora(task_type: str, dataset: str, labels: Sequence[str]) -> str:
    r"""O-LoRA's prompt: type and name of the data set, instruction, options, text.

    The data set's name identifies the task to the model. COPA's text asks the question and lists the options itself.

    >>> o_lora("QQP", "QQP", ["False", "True"]).splitlines()[-3:]
    ['Option: False, True ', '{text}', 'Answer:']

    Raises:
        UnknownName: no such task type.
    """
    if task_type not in O_LORA_INSTRUCTIONS:
        raise UnknownName("task type", task_type, O_LORA_INSTRUCTIONS)
    instruction = O_LORA_INSTRUCTIONS[task_type]
    question = f"{instruction} Choose one from the option.\nOption: {', '.join(labels)} \n" if instruction else ""
    return f"Task:{task_type}\nDataset:{dataset}\n{question}{{text}}\nAnswer:"


def sapt(definition: str) -> str:
    """SAPT's prompt for Super-NaturalInstructions (arXiv 2401.08295)."""
    return f"Definition: {definition}\n\nNow complete the following example -\nInput: {{text}}\nOutput: "


def slice_chat(definition: str) -> str:
    """SLICE's user turn for Super-NaturalInstructions (arXiv 2605.12752); the chat template goes around it."""
    return f"{definition}\n\nInput: {{text}}"
