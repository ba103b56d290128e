"""The public names, for type checkers and for __init__.py, which imports each on first use."""

from perdure import integrations, parts, testing
from perdure.adapters.folder import Adapter, open_adapter, write_adapter
from perdure.backbones.models import model_folder
from perdure.commands.doctor import doctor
from perdure.commands.export import export
from perdure.commands.grow import add, rollback
from perdure.commands.learn import learn, resume
from perdure.commands.merge import merge
from perdure.commands.predict import predict
from perdure.diagnostics.folders import diagnose_folders as diagnose
from perdure.errors import ConfigError, DataError, PerdureError, QualityGate, StoreError
from perdure.loop.progress import reporter
from perdure.loop.trackers import Trackers
from perdure.report.page import write_report
from perdure.state.scores import read_scores
from perdure.tasks.examples import Example
from perdure.tasks.sources.files import load_task
from perdure.tasks.suites import load_suite
from perdure.tasks.task import Task
from perdure.training.metrics import Scores

__version__: str

__all__ = [
    "Adapter", "ConfigError", "DataError", "Example", "PerdureError", "QualityGate", "Scores", "StoreError", "Task", "Trackers",
    "__version__", "add", "diagnose", "doctor", "export", "integrations", "learn", "load_suite", "load_task", "merge",
    "model_folder", "open_adapter", "parts", "predict", "read_scores", "reporter", "resume", "rollback", "testing",
    "write_adapter", "write_report",
]  # fmt: skip
