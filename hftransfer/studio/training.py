"""The command that a choice on the page stands for: `hftransfer train …`, as a person would type it."""

from pathlib import Path

from hftransfer.apps.review.page import patch_of
from hftransfer.config import parse_overrides
from hftransfer.core import starter
from hftransfer.core.errors import UserError
from hftransfer.models.reach import reachable
from hftransfer.models.references import AUTO
from hftransfer.runs.reader import RecordedRun
from hftransfer.studio.detected import checked_name, lines_of
from hftransfer.studio.jobs import Job, Jobs
from hftransfer.studio.place import Place, plain_name

DESCRIBED = {
    "probe": "probe: quickest, for few labels",
    "frozen": "frozen: head and last blocks",
    "full": "full: everything",
    "gradual": "gradual: block after block",
    "lora": "lora: low-rank adapters",
    "scratch": "scratch: from random weights",
    "auto": "auto: the best within a time",
}


def checkpoints(place: Place) -> list[str]:
    """Return what is at hand: the default, installed starters, data folders with a model. Any other name may be typed."""
    return [AUTO, *(found.name for found in reachable(starter.names())), *place.checkpoints()]


def data_sets(place: Place) -> list[str]:
    """Return the data in the folder, then the starter sets."""
    return [*place.data(), *starter.DATA]


def suggested_name(place: Place, data: str | None, strategy: str) -> str:
    """Return the name that a run would have: of its data and strategy, numbered where that is taken."""
    stem = Path(data).name.split(".")[0] if data and data != "." else place.root.name
    return place.free_run_name(f"{plain_name(stem) or 'data'}-{strategy}")


def train(
    place: Place, jobs: Jobs, data: str | None, model: str, strategy: str, minutes: float, name: str, patch: str,
    options: str,
) -> Job:  # fmt: skip
    """Start a training. Raises `UserError` for data that is not there, and while another job runs."""
    if not checked_name(data).startswith(("starter/", "hub:")):
        place.path(data)
    further = lines_of(options)
    parse_overrides(further)  # raises for what is no key=value
    name = plain_name(name) or suggested_name(place, data, strategy)
    arguments = ["train", data, "--model", model or AUTO, "--strategy", strategy, "--output", f"runs/{name}"]
    arguments += [f"strategy.budget={max(1, round(minutes))}m"] if strategy == "auto" else []
    arguments += ["--patch", patch] if patch else []
    return jobs.start([*arguments, *further], place.runs / name)


def train_again(place: Place, jobs: Jobs, run: str) -> Job:
    """Train the run again with the decisions about its examples. Raises `UserError` where there are none."""
    patch = patch_of(RecordedRun.open(place.run(run)))
    if not patch.is_file():
        raise UserError("No decision was made yet: label or correct some examples first.")
    name = place.free_run_name(run)
    patched = patch.relative_to(place.root).as_posix() if patch.is_relative_to(place.root) else str(patch)
    arguments = ["train", f"runs/{run}/config.yaml", "--patch", patched, "--output", f"runs/{name}"]
    return jobs.start(arguments, place.runs / name)
