"""Run Python programs in processes forked from a server that has imported torch and pandas.

A program begins three times as fast. The server imports only libraries that do not read the
environment. Of transformers, huggingface_hub and this package a program imports what it needs, as in any fresh process.
A program that may have them, in the environment of the tests, is forked from a second server with `ready`.
"""

import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TextIO

READY = ("scipy.stats", "sklearn.linear_model", "datasets", "transformers.modeling_utils", "transformers.pipelines")


def run_python(
    command: list[str], cwd=None, env=None, check=False, ready: bool = False, **_: object
) -> subprocess.CompletedProcess:
    """Run `command`, which begins with `sys.executable`, as `subprocess.run` would with its output captured as text.

    With `ready`, transformers, scikit-learn and scipy are imported already.
    """
    server = _server()
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place) / "out", Path(place) / "err"
        order = {
            "arguments": [str(part) for part in command[1:]],
            "cwd": str(cwd or Path.cwd()),
            "env": dict(env or os.environ),
            "ready": ready,
        }
        server.stdin.write(json.dumps(order | {"out": str(out), "err": str(err)}) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        done = subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())
    if check:
        assert not done.returncode, done.stderr[-3000:]
    return done


@cache
def _server() -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", __file__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def serve(orders: TextIO, answers: TextIO) -> dict:
    """Fork for each order, and answer with its exit code; return the order in the forked process."""
    second = None
    while line := orders.readline():
        order = json.loads(line)
        if order["ready"] and "transformers" not in sys.modules:
            second = second or fork_second()
            if isinstance(second, dict):
                return second
            code = second(line)
        elif child := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            return order
        print(code, file=answers, flush=True)
    os._exit(0)


def fork_second() -> Callable[[str], int] | dict:
    """Fork the server that has transformers ready: a function that hands an order on, or in its own children the order."""
    orders, answers = os.pipe(), os.pipe()
    if os.fork():
        os.close(orders[0])
        os.close(answers[1])
        to, back = os.fdopen(orders[1], "w"), os.fdopen(answers[0])

        def hand_on(line: str) -> int:
            print(line, end="", file=to, flush=True)
            return int(back.readline())

        return hand_on
    os.close(orders[1])
    os.close(answers[0])
    for library in READY:
        importlib.import_module(library)
    gc.collect()
    gc.freeze()
    return serve(os.fdopen(orders[0]), os.fdopen(answers[1], "w"))


def become(order: dict) -> None:
    """Take over the environment, folder and output of an order, and run its program."""
    for number, file in enumerate((os.devnull, order["out"], order["err"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.path[:0] = filter(None, order["env"].get("PYTHONPATH", "").split(os.pathsep))
    arguments = order["arguments"]
    safe = arguments[0] == "-P"
    kind, *rest = arguments[safe:]
    if kind == "-c":
        sys.path[:0], sys.argv = [""], ["-c", *rest[1:]]
        program = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(program))
    elif kind == "-m":
        sys.path[:0], sys.argv = [""], rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0], sys.argv = [] if safe else [str(Path(kind).parent)], [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import torchvision  # noqa: F401

    gc.collect()
    gc.freeze()
    become(serve(sys.stdin, sys.stdout))
