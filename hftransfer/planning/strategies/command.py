"""The two ways in: `advise` measures and says; `keep_the_best` leaves the run folder of what was chosen as well."""

import logging
import tempfile
from pathlib import Path
from typing import Any

from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.planning.strategies.candidates import Clock
from hftransfer.planning.strategies.experiments import Experiments
from hftransfer.planning.strategies.kept import Kept, Once
from hftransfer.planning.strategies.search import Search
from hftransfer.planning.strategies.wording import FILE, advice, as_dict
from hftransfer.runtime import launch

log = logging.getLogger(__name__)


def advise(config: RunConfig, dataset: Any = None) -> Search:
    """Measure every candidate within the budget of `config.strategy` (an `AutoStrategy`); nothing is left behind.

    Raises `UserError` for every mistake in the input.
    """
    return _search(config, dataset, Clock(config.strategy.seconds))


def keep_the_best(config: RunConfig, dataset: Any, once: Once) -> tuple[Kept, bool]:
    """Search with a run folder: the probe's as soon as it can be, later that of the choice; `advice.json` in it.

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
    search = _search(config, dataset, clock, kept)
    write_json(kept.output / FILE, as_dict(search))
    log.info("%s", advice(search))
    return kept, search.interrupted


def _search(config: RunConfig, dataset: Any, clock: Clock, kept: Kept | None = None) -> Search:
    with tempfile.TemporaryDirectory(prefix="hftransfer-") as scratch:
        experiments = Experiments.open(config, dataset, Path(scratch))
        search = Search(experiments, config.strategy, clock, kept, kept.overhead if kept else 0.0)
        search.run()
    return search
