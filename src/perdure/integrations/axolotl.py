"""perdure in an axolotl configuration, by axolotl's own plug-in point (its `BasePlugin`).

plugins: [perdure.integrations.axolotl.PerdurePlugin]
perdure: {method: ps-lora, history: [adapters/march, adapters/april], save: adapters/may}

axolotl imports this module by the name in `plugins`; nothing else in perdure does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axolotl.integrations.base import BasePlugin  # pyright: ignore[reportMissingImports]
from pydantic import BaseModel, ConfigDict

from perdure.errors import ConfigError
from perdure.files.output import check_new
from perdure.integrations.continual import Continual


class PerdureSettings(BaseModel):
    """What stands under `perdure:`; see `Continual`."""

    model_config = ConfigDict(extra="forbid")

    method: str | dict[str, Any] = "ps-lora"
    history: list[str] = []
    task: str = "new"
    seed: int = 0
    save: str
    """folder of the new task's adapter, the next entry of `history`."""
    save_deployed: str | None = None
    """folder of the model that answers queries."""


class PerdureArgs(BaseModel):
    """What the plug-in adds to axolotl's configuration."""

    perdure: PerdureSettings


class PerdurePlugin(BasePlugin):
    """Attaches `Continual` to axolotl's trainer before it trains, and saves when it has trained."""

    _continual: Continual | None = None

    def get_input_args(self) -> str:
        """The class that axolotl checks the settings with."""
        return f"{__name__}.{PerdureArgs.__name__}"

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Refuse what cannot end well, then attach.

        Raises:
            ConfigError: no plain LoRA, or what `Continual.attach` refuses. StoreError: a folder to write exists.
        """
        if cfg.get("adapter") != "lora" or cfg.get("relora"):
            raise ConfigError(
                f"perdure trains a plain LoRA: set `adapter: lora` (now {cfg.get('adapter')!r}) and leave out relora."
            )
        settings = self._settings(cfg)
        for folder in filter(None, (settings.save, settings.save_deployed)):
            check_new(Path(folder))
        self._continual = Continual(settings.method, settings.history, task=settings.task, seed=settings.seed)
        self._continual.attach(trainer)

    def post_train(self, cfg: Any, model: Any) -> None:
        """Save once: axolotl 0.19 calls this after training and again after it has written its own adapter."""
        if self._continual is None:
            return
        continual, self._continual, settings = self._continual, None, self._settings(cfg)
        continual.save(settings.save)
        if settings.save_deployed:
            continual.save_deployed(settings.save_deployed)

    @staticmethod
    def _settings(cfg: Any) -> PerdureSettings:
        return PerdureSettings.model_validate(dict(cfg["perdure"]))
