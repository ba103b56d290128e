"""`perdure push RUN ORG/NAME`: what a run deploys, exported with its card and uploaded to the hub, private by default."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.adapters.format import CONFIG_FILE
from perdure.commands.answering import public_base
from perdure.commands.export import Form, export
from perdure.errors import ConfigError, StoreError
from perdure.files.output import MARK
from perdure.state.store import DEPLOYED, Store

NOT_PUSHED = ("merge.json", MARK)
"""Records of the export on this machine."""


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be: file -> bytes, and where to."""

    repo: str
    private: bool
    files: dict[str, int]
    url: str | None

    def lines(self) -> list[str]:
        """What a person reads of it."""
        begun = f"Uploaded to {self.url}" if self.url else f"Would upload to {self.repo}"
        who = "private" if self.private else "public"
        return [f"{begun} ({who}):", *(f"  {name}  {size / 1e6:.2f} MB" for name, size in self.files.items())]


def push(
    run: str | Path,
    repo: str,
    *,
    form: Form | None = None,
    task: str | None = None,
    base_id: str | None = None,
    private: bool = True,
    dry_run: bool = False,
    api: Any = None,
) -> Pushed:
    """Export what the run deploys and upload it to the hub's model repository `repo`, which is made if it is new.

    Args:
        form: default: an adapter where the run deploys one, else the whole model.
        task: as in `export`.
        base_id: the base's hub id, where the run learnt on a folder, whose path means nothing elsewhere.
        private: of a new repository; one that is there stays what it is.
        dry_run: export and check, but contact nobody.
        api: a `huggingface_hub.HfApi`; default: one with the token of `hf auth login`.

    Raises:
        StoreError, ConfigError: as in `export`; no base id for an adapter; the hub refuses, or cannot be reached.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    store = Store(Path(run))
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"'{repo}' is not a name on the hub: give ORG/NAME. {error}") from None
    form = form or ("model" if (store.folder / DEPLOYED / "config.json").is_file() else "adapter")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / repo.rpartition("/")[2]
        export(run, out, form, task=task)
        if form == "adapter":
            _name_base(store, out, base_id)
        files = {
            str(path.relative_to(out)): path.stat().st_size
            for path in sorted(out.rglob("*"))
            if path.is_file() and path.name not in NOT_PUSHED
        }
        url = None if dry_run else _upload(out, repo, private, api)
    return Pushed(repo, private, files, url)


def _name_base(store: Store, out: Path, base_id: str | None) -> None:
    """Write the base's hub id into the exported adapter and its card; ConfigError if it is not known."""
    name = base_id or public_base(str(store.about["config"]["backbone"]["model"]))
    if name is None:
        raise ConfigError(
            f"The run in '{store.folder}' learnt on a folder of this machine, which nobody else has. Say what its base is called "
            "on the hub (--base-id ORG/NAME), or push the whole model (--as model)."
        )
    config = json.loads((out / CONFIG_FILE).read_text(encoding="utf-8"))
    (out / CONFIG_FILE).write_text(json.dumps({**config, "base_model_name_or_path": name}, indent=2), encoding="utf-8")
    from huggingface_hub import ModelCard

    card = ModelCard.load(out / "README.md")
    setattr(card.data, "base_model", name)  # noqa: B010  (the library's type does not know it)
    card.save(out / "README.md")


def _upload(out: Path, repo: str, private: bool, api: Any) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    client_error: Any = HfHubHTTPError.__mro__[1]  # that of its HTTP client, which differs by version
    api = api or HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=str(out), commit_message="perdure push", ignore_patterns=[*NOT_PUSHED]
        )
    except (HfHubHTTPError, LocalTokenNotFoundError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        why = " ".join(dict.fromkeys([lines[0], lines[-1]]))
        raise ConfigError(f"The hub refuses '{repo}': {why} Log in with `hf auth login`, or check the name.") from error
    except (client_error, OSError) as error:
        raise StoreError(f"The hub cannot be reached: {error}. Nothing of the run was changed; push again.") from error
    return f"https://huggingface.co/{repo}"
