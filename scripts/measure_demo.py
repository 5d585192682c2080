"""How long the demo takes to answer: one user after another, and many at the same time.

    python scripts/measure_demo.py runs/pets runs/reviews

The demo of each run is served by a process of its own on loopback and asked by `gradio_client` with the run's test
inputs: upload, queue, model and answer are in the time. Prints the median and the 95th percentile in milliseconds.
"""

import argparse
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from gradio_client import Client, handle_file


@contextmanager
def served(run: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "hftransfer", "demo", str(run), "--port", str(port)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        _wait_for(port, process)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen) -> None:
    for _ in range(240):
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            sys.exit(f"The demo ended with exit code {process.returncode} before it answered.")
        time.sleep(0.5)
    sys.exit("The demo did not come up in two minutes.")


def questions(run: Path) -> list[tuple[Any, ...]]:
    rows = pd.read_parquet(run / "splits.parquet").query("split == 'test'").to_dict("records")
    pictured = not (run / "model" / "tokenizer_config.json").is_file()
    names = [name for name in ("input", "input_pair") if name in rows[0]]
    return [tuple(handle_file(row[name]) if pictured else row[name] for name in names) for row in rows]


def times(clients: list[Client], asked: list[tuple[Any, ...]], each: int) -> np.ndarray:
    """Milliseconds of every answer, all users at once, each asking `each` questions without a pause."""

    def ask(user: int) -> list[float]:
        taken = []
        for number in range(each):
            begin = time.perf_counter()
            clients[user].predict(*asked[(user + number * len(clients)) % len(asked)], api_name="/predict")
            taken.append(1000 * (time.perf_counter() - begin))
        return taken

    with ThreadPoolExecutor(len(clients)) as pool:
        return np.concatenate(list(pool.map(ask, range(len(clients)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--users", nargs="+", type=int, default=[1, 20])
    parser.add_argument("--questions", type=int, default=40, help="of all users together, at least one each")
    options = parser.parse_args()
    print("| run | users | answers | median ms | p95 ms |\n|---|---:|---:|---:|---:|")
    for run in options.runs:
        asked = questions(run)
        with served(run) as address:
            for users in options.users:
                clients = [Client(address, verbose=False) for _ in range(users)]
                times(clients[:1], asked, 3)  # warm
                found = times(clients, asked, max(1, options.questions // users))
                print(
                    f"| {run.name} | {users} | {len(found)} | {np.median(found):.0f} | {np.quantile(found, 0.95):.0f} |"
                )


if __name__ == "__main__":
    main()
