"""Runs in processes of their own that can be killed: forked from a server that has imported everything, so quick to start."""

import logging
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hftransfer.config import RunConfig

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.support.prepared"])
RANK = ("RANK", "LOCAL_RANK")
WORLD = ("WORLD_SIZE", "LOCAL_WORLD_SIZE")


def start(config: RunConfig, cache: Path, resume: bool = False, kill_at: int | None = None, world: tuple = (0, 1, 0)):
    """A process that makes a run with a cache of its own; `kill_at`: killed at that many writes (None: not by itself)."""
    process = CONTEXT.Process(target=_make, args=(config.to_yaml(), cache, resume, kill_at, world))
    process.start()
    return process


def two_processes(config: RunConfig, cache: Path, resume: bool = False) -> list:
    """Both processes of one run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return [start(config, cache, resume, world=(rank, 2, port)) for rank in range(2)]


def in_each(function: Callable, *arguments: object, size: int = 2, seconds: float = 60) -> list[object]:
    """What `function(world, *arguments)` returns or raises in each of `size` connected processes, in order of rank.

    A process that is not done after `seconds` is killed, and stands as None: it waits for another one.
    """
    results = CONTEXT.SimpleQueue()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes = [
        CONTEXT.Process(target=_connected, args=(function, arguments, (rank, size, port), results))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, until - time.monotonic()))
        process.kill()
    found: dict[int, object] = {}
    while not results.empty():
        found |= [results.get()]
    return [found.get(rank) for rank in range(size)]


def _connected(function: Callable, arguments: tuple, world: tuple[int, int, int], results: object) -> None:
    from accelerate import PartialState

    from hftransfer.runtime.launch import World

    rank, size, _ = world
    launched_as(world)
    PartialState(cpu=True)
    try:
        results.put((rank, function(World(rank, size, rank, size), *arguments)))
    except Exception as error:
        results.put((rank, error))
    time.sleep(0.5)  # a process that ends closes its connections, which would end a wait that lasts for ever


def launched_as(world: tuple[int, int, int]) -> None:
    """Set the variables of a launcher: rank, number of processes, port."""
    rank, size, port = world
    os.environ |= dict.fromkeys(RANK, str(rank)) | dict.fromkeys(WORLD, str(size))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _make(config: str, cache: Path, resume: bool, kill_at: int | None, world: tuple[int, int, int]) -> None:
    import yaml

    from hftransfer.config import checked
    from hftransfer.core.errors import UserError
    from hftransfer.train import run

    rank, size, _ = world
    if size > 1:
        launched_as(world)
    os.environ["HFTRANSFER_CACHE"] = str(cache)
    config = checked(yaml.safe_load(config))
    logging.basicConfig(filename=f"{config.output}.{rank}.log", level=logging.INFO, force=True)
    writes = Writes(Path(config.output).parent, cache, kill_at)
    sys.addaudithook(writes)
    try:
        made = run(config, resume=resume)
    except UserError as error:
        logging.getLogger("test").error(str(error))
        sys.exit(2)
    Path(f"{config.output}.writes").write_text(str(writes.seen))
    sys.exit(made.interruption.exit_code if made.interruption else 0)


class Writes:
    """An audit hook that counts what is written, renamed or removed below some folders, and kills at a number."""

    EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "shutil.rmtree")

    def __init__(self, output: Path, cache: Path, kill_at: int | None):
        self.places, self.kill_at, self.seen = (str(output), str(cache)), kill_at, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in self.EVENTS or not str(arguments[0]).startswith(self.places):
            return
        if event == "open" and not any(mark in str(arguments[1]) for mark in "wax+"):
            return
        self.seen += 1
        if self.seen == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


class Interrupted:
    """One run that is made whole once, to compare with, and then again and again with something in between."""

    def __init__(self, config: RunConfig, folder: Path):
        self.config, self.folder, self.count = config, folder, 0
        begin = time.monotonic()
        self.whole, code = self.made(self.config.model_copy(update={"output": str(folder / "whole" / "run")}))
        self.seconds = time.monotonic() - begin
        self.writes = int(Path(f"{self.whole}.writes").read_text())
        assert code == 0

    def made(self, config: RunConfig, resume: bool = False) -> tuple[Path, int]:
        process = start(config, self.cache(config), resume)
        process.join()
        return Path(config.output), process.exitcode

    def cache(self, config: RunConfig) -> Path:
        """A cache without features, but with the trials of batch sizes: taken anew they could fall out differently."""
        Path(config.output).parent.mkdir(exist_ok=True)
        cache = Path(config.output).parent / "cache"
        trials = self.folder / "whole" / "cache" / "trials"
        if trials.exists() and not cache.exists():
            shutil.copytree(trials, cache / "trials")
        return cache

    def killed(self, chance: random.Random) -> tuple[Path, str]:
        """The run killed once, at a random time or a random write, and brought to its end; and what lay there then."""
        self.count += 1
        config = self.config.model_copy(update={"output": str(self.folder / f"killed{self.count}" / "run")})
        by_time = self.count % 2
        process = start(config, self.cache(config), kill_at=None if by_time else chance.randint(1, self.writes))
        process.join(chance.uniform(0, 0.95 * self.seconds) if by_time else None)
        process.kill()
        process.join()
        found = what_lies_there(Path(config.output))
        output, code = self.made(config, resume=can_resume(Path(config.output)))
        assert code == 0, (found, Path(f"{output}.0.log").read_text()[-2000:])
        return output, found


def can_resume(output: Path) -> bool:
    checkpoints = output.with_name(f"{output.name}.incomplete").glob("checkpoints/*/trainer_state.json")
    return output.exists() or any(checkpoints)


def what_lies_there(output: Path) -> str:
    incomplete = output.with_name(f"{output.name}.incomplete")
    if output.exists():
        return "whole" if (output / "README.md").exists() else "whole, no pages"
    if not incomplete.exists():
        return "nothing"
    if (incomplete / "config.yaml").exists():
        return "writing"
    return "checkpoints" if can_resume(output) else "no checkpoint"


def wait_for(found: Callable[[], object], process: multiprocessing.Process, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not found() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
