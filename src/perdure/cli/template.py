"""The commented configuration that `perdure init` writes."""

from __future__ import annotations

from pathlib import Path

import perdure.config
from perdure.errors import ConfigError
from perdure.files.durable import write_text

SCHEMA = Path(perdure.config.__file__).with_name("perdure.schema.json")
"""What may stand in a configuration, for editors that speak JSON schema."""
TEMPLATE = """\
# yaml-language-server: $schema={schema}
# A run of perdure. Start it with:  perdure run {file} --out runs/mine
# Any setting can also be given on the command line: perdure run {file} training.epochs=2

tasks:                          # learnt in this order
  - name: tickets
    train: tickets.jsonl        # .jsonl, .json, .csv, .tsv or .parquet, relative to this file;
    # validation: dev.jsonl     #   records like {{"text": "...", "label": "..."}}
    # test: test.jsonl          #   a split that is not given is cut from train, and the run says so
    # labels: {{billing: a question about a bill, outage: a report of an outage}}
  # - more.yaml                 # or a file of its own with the same keys
# suite: quickstart             # or instead of tasks: a suite, see `perdure suites`

method: ps-lora                 # see `perdure methods`; or change its parts:
# method:
#   preset: ps-lora
#   penalties: {{sign-magnitude: {{weight: 0.01, alpha: 1000}}}}
#   consolidate: {{kind: max-magnitude, when: end}}

backbone: minilm                # a known model, a folder, or a hub id with its kind:
# backbone: {{kind: causal, model: org/name, max_length: 256}}

lora: {{rank: 8, alpha: 16}}      # targets: query and value by default, as the model calls them
training:
  learning_rate: 2.0e-3
  later_learning_rate_factor: 0.3   # a smaller rate after the first task forgets less
  epochs: 3
  batch_size: 16

evaluation: {{split: test}}       # validation while you choose settings
seed: 0
precision: auto                 # bf16 where the processor is faster with it
"""


def write_template(file: Path) -> None:
    """Write it.

    Raises:
        ConfigError: the file exists; StoreError: it cannot be written.
    """
    if file.exists():
        raise ConfigError(f"'{file}' exists; choose another name, or edit it.")
    write_text(file, TEMPLATE.format(file=file, schema=SCHEMA.as_uri()))
