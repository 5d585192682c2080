"""The run folder of a search: the probe after the first minute, replaced whole by what was found to be better."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.files import remove
from hftransfer.planning.strategies.candidates import changed
from hftransfer.runs import folder as run_folder
from hftransfer.runs.record import RunRecord

log = logging.getLogger(__name__)

Once = Callable[[RunConfig], dict[str, Any]]  # makes one run folder; returns its metrics


class Kept:
    """Makes the folder of `config.output_folder`, then remakes it beside and puts the new one in the place of the old.

    At every moment but that of two renames a whole run lies at the output. `config` and `metrics` are those of it.
    """

    def __init__(self, config: RunConfig, once: Once):
        self.output = config.output_folder
        self.asked, self.once = config, once
        self.config, self.metrics, self.seconds = config, {}, 0.0

    def __call__(self, changes: dict[str, Any]) -> None:
        """Make the run with these changes to what was asked for, at the output."""
        begin = time.perf_counter()
        config = changed(self.asked, changes | {"output": str(self.output)})
        if self.output.exists() and self.metrics:
            metrics = self._replace(config)
        else:
            metrics = self.once(config)
        self.config, self.metrics = config, metrics
        self.seconds = time.perf_counter() - begin

    @property
    def overhead(self) -> float:
        """Seconds of the folder at the output besides its training."""
        return self.seconds - RunRecord.read(self.output).seconds.get("training", 0.0)

    def _replace(self, config: RunConfig) -> dict[str, Any]:
        beside = self.output.with_name(f"{self.output.name}.next")
        remove(run_folder.incomplete(beside))  # of a search that was killed
        try:
            metrics = self.once(config.model_copy(update={"output": str(beside)}))
            made = RunConfig.from_yaml(beside / "config.yaml", {"output": str(self.output)})
            (beside / "config.yaml").write_text(made.to_yaml(), encoding="utf-8")
            put_in_place(beside, self.output)
        finally:
            remove(beside)
            remove(run_folder.incomplete(beside))
        return metrics


def put_in_place(new: Path, old: Path) -> None:
    """Give `new` the name of `old`, and remove `old`. Raise `UserError` where that fails: `old` is as it was."""
    aside = old.with_name(f"{old.name}.old")
    remove(aside)
    try:
        old.rename(aside)
        new.rename(old)
    except OSError as error:
        if not old.exists():
            aside.rename(old)
        raise UserError(
            f"A better run could not take the place of {old} ({error.strerror or error}): the earlier one is kept there. "
            "Close what holds files of that folder open, and run the command again with another --output."
        ) from error
    remove(aside)
