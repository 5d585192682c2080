"""The Space folder started alone, in an environment made from its own requirements.txt, and asked through Gradio's client.

    hftransfer push RUN me/model --dry-run pushed --space me/demo
    python scripts/try_space.py pushed/space "a text to ask" [--environment FOLDER] [--keep] [--pypi-alone]

For an image give its path. The environment takes some 5 GB and minutes; it is removed in the end unless --keep is given.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ASK = """
import json, sys
from gradio_client import Client, handle_file
url, *inputs = sys.argv[1:]
given = [handle_file(value) if value.lower().endswith((".jpg", ".jpeg", ".png")) else value for value in inputs]
answer, *_ = Client(url, verbose=False).predict(*given, api_name="/predict")
print(json.dumps(answer))
"""


def make_environment(folder: Path, requirements: Path, pypi_alone: bool) -> Path:
    """Make a virtual environment with what the Space asks for; return its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True, clear=True)
    lines = requirements.read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line and not line.startswith(("#", "--") if pypi_alone else "#")]
    chosen = folder / "requirements.txt"
    chosen.write_text("\n".join(wanted) + "\n", encoding="utf-8")
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", chosen], check=True)
    return python


@contextmanager
def started(python: Path, space: Path, wait: float = 300) -> Iterator[str]:
    """`app.py` in a copy of the Space that has nothing of ours beside it; its address once it answers."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "app"
        shutil.copytree(space, copy)
        port = _free_port()
        settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        settings |= {"GRADIO_SERVER_PORT": str(port), "HF_HOME": place, "GRADIO_ANALYTICS_ENABLED": "False"}
        server = subprocess.Popen([python, "app.py"], cwd=copy, env=settings)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(url, server, wait)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, server: subprocess.Popen, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            sys.exit(f"app.py ended with code {server.returncode} before it answered.")
        try:
            urllib.request.urlopen(f"{url}/config", timeout=5).read()
            return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    sys.exit(f"app.py did not answer within {seconds:.0f} seconds.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path, help="the folder as it is pushed")
    parser.add_argument("inputs", nargs="+", help="a text, two texts of a pair, or the path of an image")
    parser.add_argument("--environment", type=Path, default=Path(tempfile.gettempdir()) / "try-space")
    parser.add_argument("--keep", action="store_true", help="leave the environment for another try")
    parser.add_argument("--pypi-alone", action="store_true", help="leave out the index of the CPU builds")
    asked = parser.parse_args()
    inputs = [str(Path(value).resolve()) if Path(value).is_file() else value for value in asked.inputs]
    begin = time.perf_counter()
    try:
        python = make_environment(asked.environment.resolve(), asked.space / "requirements.txt", asked.pypi_alone)
        print(f"environment: {time.perf_counter() - begin:.0f} s", flush=True)
        begin = time.perf_counter()
        with started(python, asked.space) as url:
            print(f"started in {time.perf_counter() - begin:.0f} s", flush=True)
            answer = subprocess.run([python, "-c", ASK, url, *inputs], check=True, capture_output=True, text=True)
            print(json.dumps(json.loads(answer.stdout), indent=1, ensure_ascii=False))
    finally:
        if not asked.keep:
            shutil.rmtree(asked.environment, ignore_errors=True)


if __name__ == "__main__":
    main()
