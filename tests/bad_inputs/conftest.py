"""One finished run for all tests, copied for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.commands.learn import run_config
from perdure.config.run_config import load_config
from tests.bad_inputs.place import Place, copied
from tests.own_files import write_own_files


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    config = write_own_files(folder, encoder_folder)
    run_config(load_config(config), folder / "run")
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path) -> Place:
    return copied(finished, tmp_path / "place")
