"""Bad settings, names and command lines: the message names the setting, the value and the known ones; no run is started."""

from __future__ import annotations

import pytest

from tests.bad_inputs.place import RUN, Bad, Place, nothing, refused


def text(content: str, file: str = "config.yaml"):
    return lambda place: (place.folder / file).write_text(content)


def setting(pair: str, *says: str, code: int = 3) -> Bad:
    """A run with one more `key=value`."""
    return Bad(nothing, says, code, (*RUN, pair))


def command(*argv: str, says: tuple[str, ...], code: int = 3) -> Bad:
    return Bad(nothing, says, code, argv)


PENALTY = "method.penalties.sign-magnitude"
CASES: dict[str, Bad] = {
    "no such configuration": command("run", "no.yaml", says=("No such configuration file: 'no.yaml'",)),
    "a block given twice": Bad(
        text("suite: quickstart\ntraining: {epochs: 7}\ntraining: {batch_size: 3}\n"),
        ("duplicate key", '"training"', "line 3"),
        3,
    ),
    "empty backbone": Bad(text("suite: quickstart\nbackbone:\n"), ("backbone: expected a model's name", "None"), 3),
    "preset that is a list": setting("method={preset: [l2]}", "Unknown method: '['l2']'"),
    "infinite clipping": setting("training.max_grad_norm=.inf", "training.max_grad_norm", "finite"),
    "empty configuration": Bad(text(""), ("'config.yaml' must hold settings", "`key: value`"), 3),
    "configuration that is a list": Bad(text("- a\n"), ("'config.yaml' must hold settings",), 3),
    "malformed YAML": Bad(text("method: [ps-lora\nseed: 0\n"), ("'config.yaml' is not valid YAML", "line 2"), 3),
    "YAML that is not UTF-8": Bad(
        lambda p: (p.folder / "config.yaml").write_bytes(b"method: caf\xe9\n"), ("'config.yaml' is not valid YAML",), 3
    ),
    "unknown key": setting("trainig.epochs=2", "'trainig'", "Did you mean 'training'?"),
    "unknown key inside": setting("training.epoch=2", "'epoch'", "Did you mean 'epochs'?"),
    "unknown key of lora": setting("lora.rnk=2", "'rnk'", "Did you mean 'rank'?"),
    "unknown key of the evaluation": setting("evaluation.splt=test", "'splt'", "Did you mean 'split'?"),
    "unknown key of the budget": setting("budget.trian=2", "'trian'", "Did you mean 'train'?"),
    "unknown key of the backbone": setting("backbone.max_lenght=3", "'max_lenght'", "Did you mean 'max_length'?"),
    "unknown key of the method": setting("method.penalty.x=1", "'penalty'", "Did you mean 'penalties'?"),
    "unknown key of a penalty": setting(f"{PENALTY}.alpa=1", "'alpa'", "Did you mean 'alpha'?"),
    "setting inside a number": setting("seed.x=1", "seed", "{'x': 1}"),
    "no override": command(*RUN, "oops", says=("'oops' is not a setting", "Write key=value")),
    "malformed override": setting("training.epochs=[2", "The value of 'training.epochs' is not valid YAML"),
    "no epochs": setting("training.epochs=0", "training.epochs is 0", "nothing is learnt"),
    "words where a number or a word may stand": Bad(
        lambda p: p.task(validation_size="many"), ("tasks.0.validation_size: should be an integer or 'all' (got",), 3
    ),
    "words where nothing or a number may stand": setting(
        "evaluation.every_stage=some", "evaluation.every_stage: should be true or false or 'own' (got 'some')\n"
    ),
    "words for a number": setting("training.epochs=many", "training.epochs", "'many'"),
    "negative learning rate": setting("training.learning_rate=-1", "training.learning_rate", "greater than 0"),
    "learning rate that is no number": setting("training.learning_rate=.nan", "training.learning_rate", "nan"),
    "rank 0": setting("lora.rank=0", "lora.rank", "greater than or equal to 1"),
    "rank above the layer's": setting("lora.rank=4096", "lora.rank: 4096 is above the rank of", "Choose a smaller rank"),
    "targets that match nothing": setting("lora.targets=[qery]", "'qery'", "Candidates:", "query", "value"),
    "negative weight": setting(f"{PENALTY}.weight=-1", "sign-magnitude.weight", "greater than or equal to 0"),
    "negative seed": setting("seed=-1", "seed", "greater than or equal to 0"),
    "no threads": setting("threads=0", "threads", "greater than or equal to 1"),
    "unknown precision": setting("precision=fp8", "precision", "'fp8'", "bf16"),
    "unknown split": setting("evaluation.split=train", "evaluation.split", "'validation' or 'test'"),
    "unknown method": command(*RUN, "--method", "pslora", says=("'pslora'", "Did you mean 'ps-lora'?")),
    "unknown penalty": setting("method.penalties.sign-magnitud.weight=1", "Did you mean 'sign-magnitude'?"),
    "unknown merge": setting("method.consolidate.kind=max-magnitud", "Did you mean 'max-magnitude'?"),
    "part of your own that is not there": setting("method.init.kind=nowhere:Init", "nowhere:Init", "importable"),
    "part without a kind": setting("method.replay={size: 3}", "method.replay", "`kind`"),
    "penalties that are no mapping": setting("method.penalties=[l2]", "method.penalties", "mapping"),
    "penalty that is no mapping": setting("method.penalties={l2: 0.1}", "method.penalties.l2", "mapping"),
    "unknown stream": setting("method.stream=all", "stream", "'all'", "joint"),
    "unknown backbone": setting("backbone=no-such-model", "'no-such-model'", "minilm"),
    "backbone of unknown kind": setting("backbone.kind=encodr", "'encodr'", "Did you mean 'encoder'?"),
    "backbone folder without a model": setting("backbone.model=./data", "data is not a model folder", "config.json"),
    "length 0": setting("backbone.max_length=0", "backbone.max_length", "greater than or equal to 2"),
    "unknown suite": command("run", "--suite", "quickstar", says=("'quickstar'", "Did you mean 'quickstart'?")),
    "unknown order": command("run", "--suite", "quickstart", "--order", "zz", says=("'zz'", "default")),
    "budget beside tasks": setting("budget.train=4", "`budget`: only for suites", "train_size"),
    "order beside tasks": setting("order=nonsense", "`order`: only for suites"),
    "data beside tasks": setting("data=data", "`data`: only for suites"),
    "data seed beside tasks": setting("data_seed=1", "`data_seed`: only for suites", "seed"),
    "task that is not there": Bad(
        lambda p: p.config(tasks=["tickts.yaml"]), ("No such task file: 'tickts.yaml'", "'config.yaml' names under `tasks`"), 3
    ),
    "unknown key in a task's file": Bad(
        text("name: sky\ntrian: sky.csv\n", "data/sky.yaml"), ("data/sky.yaml: ", "'trian'", "Did you mean 'train'?"), 3
    ),
    "a task for a run": command(
        "run", "data/sky.yaml", says=("'data/sky.yaml' describes a task", "`tasks: [sky.yaml]`")
    ),
    "a run for a task": command(
        "add", "run", "config.yaml", says=("'config.yaml' is a run's configuration, not a task: give a file with `name`",)
    ),
    "a run among the tasks": Bad(
        lambda p: (text("suite: quickstart\n", "other.yaml")(p), p.config(tasks=["other.yaml"])),
        ("'other.yaml' is a run's configuration, not a task",),
        3,
    ),
    "a run for a sweep": command(
        "sweep", "config.yaml", says=("is the configuration of a run, not a sweep", "`perdure run config.yaml`")
    ),
    "tasks that are no list": Bad(lambda p: p.config(tasks="sky.yaml"), ("tasks: expected a list", "'sky.yaml'"), 3),
    "lora that is no settings": setting("lora=8", "lora: expected settings, as in {key: value} (got 8)"),
    "against in a report of a run": command("report", "run", "--against", "l2", says=("--against", "sweep")),
    "suite and tasks": command(*RUN, "--suite", "quickstart", says=("`suite`", "`tasks`", "not both")),
    "nothing to learn": command("run", says=("Nothing to learn", "`perdure suites`", "`perdure init`")),
    "suite's data missing": command("run", "--suite", "standard-cl", says=("'standard-cl' needs its data", "PERDURE_CL"), code=4),
    "suite's data elsewhere": command(
        "run", "--suite", "standard-cl", "--data", "nowhere", says=("No such folder: nowhere", "labels.json"), code=4
    ),
    "budget 0": setting("budget.train=0", "budget.train", "greater than or equal to 1"),
    "unknown tracker": command(*RUN, "--tracker", "wandbs", says=("'wandbs'", "Did you mean 'wandb'?")),
    "unknown option": command("run", "--methd", "l2", says=("No such option: --methd", "--method"), code=2),
    "unknown command": command("runn", says=("No such command 'runn'",), code=2),
    "unknown progress": command(*RUN, "--progress", "loud", says=("--progress", "'auto', 'quiet', 'verbose', 'json'"), code=2),
    "missing argument": command("scores", says=("Missing argument",), code=2),
    "show of an unknown suite": command("suites", "show", "quickstar", says=("Did you mean 'quickstart'?",)),
    "no such sweep": command("sweep", "no.yaml", says=("No such sweep file: 'no.yaml'",)),
    "malformed sweep": Bad(text("name: [x\n", "s.yaml"), ("s.yaml", "not valid YAML"), 3, ("sweep", "s.yaml")),
    "unknown key of a sweep": Bad(
        text("name: x\nmethods: {l2: {}}\nseds: [1]\n", "s.yaml"), ("'seds'", "Did you mean 'seeds'?"), 3, ("sweep", "s.yaml")
    ),
    "sweep of an unknown method": Bad(
        text("name: x\nmethods: {pslora: {}}\n", "s.yaml"), ("'pslora'", "Did you mean 'ps-lora'?"), 3, ("sweep", "s.yaml")
    ),
    "init into a file": command("init", "config.yaml/perdure.yaml", says=("'config.yaml'", "Cannot create"), code=6),
    "init into a device": command("init", "/dev/full/x.yaml", says=("'/dev/full'", "Cannot create"), code=6),
    "init over a file": command("init", "config.yaml", says=("'config.yaml' already exists", "Choose another name")),
    "unknown merge rule": command("merge", "run/stages/01-fruit/adapter", "--rule", "sums", "--out", "m", says=("'sums'",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_settings(name: str, place: Place, monkeypatch, capsys) -> None:
    monkeypatch.delenv("PERDURE_CL_BENCHMARK", raising=False)
    refused(CASES[name], place, monkeypatch, capsys)


def test_a_traceback_is_shown_when_asked_for(place: Place, monkeypatch, capsys) -> None:
    from perdure.errors import ConfigError
    from tests.own_files import perdure

    monkeypatch.setenv("PERDURE_TRACEBACK", "1")
    monkeypatch.chdir(place.folder)
    with pytest.raises(ConfigError):
        perdure(monkeypatch, capsys, "run", "no.yaml")
