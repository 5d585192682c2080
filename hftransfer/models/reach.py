"""Which checkpoints can be had now: installed, in the cache, or on a Hub that answers. Asked once, briefly."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hftransfer.core import starter
from hftransfer.core.errors import UserError

try:
    from httpx2 import TransportError
except ImportError:  # huggingface_hub 1.x
    from httpx import TransportError

log = logging.getLogger(__name__)

SECONDS = 3  # for the one question whether the Hub answers: each checkpoint by itself would wait longer


@dataclass(frozen=True)
class Reachable:
    """`place` is what to load: the name itself, or its folder in the Hub's cache where the Hub does not answer."""

    name: str
    place: str


def reachable(names: Iterable[str]) -> Iterator[Reachable]:
    """Yield those of `names` that can be loaded, in order, as they are asked for; log one line for each that cannot."""
    answers = None
    for name in names:
        if name.startswith("starter/"):
            place, why = _installed(name)
        else:
            answers = hub_answers() if answers is None else answers
            place, why = (name, "") if answers else _cached(name)
        if place:
            yield Reachable(name, place)
        else:
            log.info("Skipped %s: %s", name, why)


def _installed(name: str) -> tuple[str | None, str]:
    try:
        starter.checkpoint(name)
    except UserError as error:
        return None, str(error)
    return name, ""


def _cached(name: str) -> tuple[str | None, str]:
    """Return the folder of a whole snapshot: a configuration alone, as a failed download leaves it, is none."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    if folder and any(folder.glob("*.safetensors")) | any(folder.glob("*.bin")):
        return str(folder), ""
    return None, "not in the Hub's cache, and the Hub cannot be reached"


def hub_answers() -> bool:
    """Whether the Hub may be asked (HF_HUB_OFFLINE) and answers within a few seconds."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (TransportError, OSError):  # httpx's own, and those of sockets and of the Hub's offline mode
        return False
    return True
