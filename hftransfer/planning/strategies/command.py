"""The two ways in: `advise` measures and says; `keep_the_best` leaves the run folder of what was chosen as well."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.planning.strategies.candidates import Climb, Clock
from hftransfer.planning.strategies.experiments import Bench
from hftransfer.planning.strategies.kept import Kept, Once
from hftransfer.planning.strategies.wording import FILE, advice, as_dict
from hftransfer.runtime import launch

log = logging.getLogger(__name__)


def advise(config: RunConfig, dataset: Any = None) -> Climb:
    """Measure every rung within the budget of `config.strategy` (an `AutoStrategy`); nothing is left behind.

    Raises `UserError` for every mistake in the input.
    """
    return _climb(config, dataset, Clock(config.strategy.seconds))


def keep_the_best(config: RunConfig, dataset: Any, once: Once) -> tuple[Kept, bool]:
    """The same with a run folder: the probe's as soon as it can be, later that of the choice; `advice.json` in it.

    `once` makes one run folder of a configuration. Returns what lies there now, and whether Ctrl-C ended the search. Raises
    `UserError`, also in a launch of several processes.
    """
    if launch.process_count() > 1:
        raise UserError(
            "strategy auto runs in one process: leave it out of a launch, and launch the strategy it chose."
        )
    clock, kept = Clock(config.strategy.seconds), Kept(config, once)
    kept({"strategy.type": "probe"})
    log.info("The probe is whole and can be used: %s (%.0f s)", kept.output, clock.spent)
    climb = _climb(config, dataset, clock, kept)
    write_json(kept.output / FILE, as_dict(climb))
    log.info("%s", advice(climb))
    return kept, climb.interrupted


def _climb(config: RunConfig, dataset: Any, clock: Clock, kept: Kept | None = None) -> Climb:
    with tempfile.TemporaryDirectory(prefix="hftransfer-") as scratch:
        bench = Bench.open(config, dataset, Path(scratch))
        climb = Climb(bench, config.strategy, clock, kept, kept.seconds if kept else 0.0)
        climb.run()
    return climb
