"""hftransfer and its peers side by side: same weights, same split, same machine, whole processes by the clock.

    python scripts/benchmark.py --make-environments fastai setfit autogluon    # once; each peer gets a virtual environment
    python scripts/benchmark.py                                        # the starter sets, every method that can run
    python scripts/benchmark.py --data fashion=data/fashion --train 500 --test 1000 --image-size 128
    python scripts/benchmark.py --report                               # only write docs/benchmark.md again

Seconds are wall seconds from the start of the process to its metrics, everything included: imports, loading, search.
Every result is kept in the work folder, so that an interrupted benchmark goes on where it stopped.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE / "benchmark")]
WEIGHTS = {"image": "starter/efficientnet-lite0", "text": "starter/minilm"}
# glibc's tunables, for peers too when --keep-memory is given: hftransfer sets the same by itself.
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=2147483647:glibc.malloc.top_pad=268435456"
PACKAGES = {"fastai": ["fastai", "timm"], "setfit": ["setfit", "transformers<5"], "autogluon": ["autogluon.multimodal"]}


@dataclass(frozen=True)
class Method:
    """A recipe: a script of `benchmark/` with its options, or a strategy of hftransfer with its overrides."""

    title: str
    script: str | None = None
    strategy: str | None = None
    options: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ("image", "text")
    environment: str | None = None


def _trainer(title: str, *options: str) -> Method:
    return Method(f"Trainer, {title}", script="stock_trainer", options=options)


METHODS = {
    "probe": Method("hftransfer probe", strategy="probe"),
    "frozen": Method("hftransfer frozen, top quarter", strategy="frozen"),
    "full": Method("hftransfer full", strategy="full"),
    "full-1": Method("hftransfer full, 1 epoch", strategy="full", options=("training.num_train_epochs=1",)),
    "full-1-once": Method(
        "hftransfer full, 1 epoch, evaluated once",
        strategy="full",
        options=("training.num_train_epochs=1", "training.evaluations=1"),
    ),
    "lora": Method("hftransfer lora", strategy="lora"),
    "gradual": Method("hftransfer gradual", strategy="gradual"),
    "trainer-docs": _trainer("as documented: 3 epochs, batch 8, 5e-5"),
    "trainer-docs-1": _trainer("its defaults, 1 epoch: batch 8, 5e-5", "--epochs=1"),
    "trainer-frozen": _trainer("frozen, 10 epochs", "--frozen", "--epochs=10", "--batch=32", "--rate=1e-3"),
    "trainer-full": _trainer("5 epochs, batch 32, 2e-4", "--epochs=5", "--batch=32", "--rate=2e-4"),
    "trainer-full-1": _trainer("1 epoch, batch 32, 2e-4", "--epochs=1", "--batch=32", "--rate=2e-4"),
    "sklearn": Method("scikit-learn on features", script="sklearn_features"),
    "fastai": Method("fastai fine_tune(3)", script="fastai_fine_tune", modalities=("image",), environment="fastai"),
    "setfit": Method("SetFit", script="setfit_trainer", modalities=("text",), environment="setfit"),
    "autogluon": Method("AutoGluon", script="autogluon_fit", modalities=("text",), environment="autogluon"),
}


@dataclass(frozen=True)
class Contest:
    """One data set as two tables, and the weights all methods start from."""

    name: str
    modality: str
    folder: Path
    model: str
    weights: Path
    rows: tuple[int, int]


def prepare(name: str, source: str, options: argparse.Namespace) -> Contest:
    """Draws the two tables, stratified, and lays the weights out as a plain folder."""
    from hftransfer.data import DataConfig, load_data

    data = load_data(DataConfig(train=source))
    folder = options.work / name.replace("/", "-")
    folder.mkdir(parents=True, exist_ok=True)
    test = _sample(data.part("test"), options.test, options.seed)
    train = _sample(data.frame[data.frame["split"] != "test"], options.train, options.seed)
    for part, frame in [("train", train), ("test", test)]:
        _write_table(folder / f"{part}.csv", frame, data.modality)
    model = options.model or WEIGHTS[data.modality]
    weights = _plain_weights(model, data, folder / "weights")
    return Contest(name, data.modality, folder, model, weights, (len(train), len(test)))


def _sample(frame, count: int, seed: int):
    from sklearn.model_selection import train_test_split

    if count >= len(frame):
        return frame
    return train_test_split(frame, train_size=count, stratify=frame["label"], random_state=seed)[0]


def _write_table(path: Path, frame, modality: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["input", "label"])
        for value, label in zip(frame["input"], frame["label"], strict=True):
            writer.writerow([str(Path(value).resolve()) if modality == "image" else value, label])


def _plain_weights(model: str, data, folder: Path) -> Path:
    """Return the folder itself where the reference is one, else a copy written by transformers."""
    from hftransfer.core import starter
    from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model

    place = starter.checkpoint(model).path if model.startswith("starter/") else Path(model)
    if place.is_dir():
        return place
    if not folder.exists():
        checkpoint = load_checkpoint(ModelConfig(name=model), data.kind, data.task)
        save_model(checkpoint.model, checkpoint.processor, folder)
    return folder


def command(method: Method, contest: Contest, output: Path, options: argparse.Namespace, seed: int) -> list[str]:
    tables = [contest.folder / f"{part}.csv" for part in ("train", "test")]
    size, length = options.image_size, options.max_length
    if method.strategy:
        shape = f"model.image_size={size}" if contest.modality == "image" else f"model.max_length={length}"
        settings = [f"data.test={tables[1]}", "data.input=input", "data.label=label", "data.allow_outside=true"]
        flags = ["--model", contest.model, "--strategy", method.strategy, "--output", str(output / "run")]
        start = [sys.executable, "-m", "hftransfer", "train", str(tables[0])]
        return [*start, *settings, shape, f"seed={seed}", *method.options, *flags]
    python = options.work / f"env-{method.environment}" / "bin" / "python" if method.environment else sys.executable
    shape = [f"--image-size={size}", f"--max-length={length}", f"--modality={contest.modality}", f"--seed={seed}"]
    paths = [f"--train={tables[0]}", f"--test={tables[1]}", f"--weights={contest.weights}", f"--output={output}"]
    return [str(python), str(HERE / "benchmark" / f"{method.script}.py"), *paths, *shape, *method.options]


def run(key: str, contest: Contest, options: argparse.Namespace, seed: int) -> dict:
    """One process by the clock, with an empty cache; a failure is a result too."""
    method = METHODS[key]
    log = contest.folder / f"{key}-{seed}.log"
    with tempfile.TemporaryDirectory(dir=contest.folder) as scratch:
        (Path(scratch) / "output").mkdir()
        arguments = command(method, contest, Path(scratch) / "output", options, seed)
        begin = time.perf_counter()
        try:
            done = subprocess.run(
                arguments, env=_environment(scratch, options), capture_output=True, text=True, timeout=options.limit
            )
            seconds, stdout, stderr = time.perf_counter() - begin, done.stdout, done.stderr
            found = _accuracy(method, done, Path(scratch) / "output")
        except (OSError, subprocess.TimeoutExpired) as error:
            seconds, stdout, stderr, found = time.perf_counter() - begin, "", str(error), {"failure": str(error)[:200]}
    log.write_text(f"{' '.join(arguments)}\n\n{stdout}\n{stderr}")
    return {"set": contest.name, "method": key, "seed": seed, "seconds": seconds, "rows": contest.rows, **found}


def _environment(scratch: str, options: argparse.Namespace) -> dict[str, str]:
    offline = {"HF_HUB_OFFLINE": "1", "HFTRANSFER_CACHE": scratch, "OMP_NUM_THREADS": str(options.threads)}
    tunables = {"GLIBC_TUNABLES": KEEP_MEMORY} if options.keep_memory else {}
    ours = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    return os.environ | offline | tunables | {"PYTHONPATH": ours}


def _accuracy(method: Method, done: subprocess.CompletedProcess, output: Path) -> dict:
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["ended without a word"]
        return {"failure": lines[-1][:200]}
    if method.strategy:
        metrics = json.loads((output / "run" / "metrics.json").read_text())
        phases = json.loads((output / "run" / "run.json").read_text())["seconds"]
        return {"accuracy": metrics["test"]["accuracy"]["value"], "phases": phases}
    return json.loads(done.stdout.strip().splitlines()[-1])


def make_environment(name: str, work: Path) -> None:
    """Make a virtual environment with a peer's newest version from the package index."""
    folder = work / f"env-{name}"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)


def can_run(key: str, contest: Contest, work: Path) -> bool:
    method = METHODS[key]
    built = method.environment is None or (work / f"env-{method.environment}").exists()
    if not built:
        print(f"{key} is left out: make its environment with --make-environments {method.environment}")
    return built and contest.modality in method.modalities


def main() -> None:
    options = arguments()
    for name in options.make_environments:
        make_environment(name, options.work)
    results_file = options.work / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else []
    done = {(result["set"], result["method"], result["seed"]) for result in results if not options.again}
    for source in [] if options.report or options.make_environments else options.data:
        name, _, path = source.rpartition("=")
        contest = prepare(name or Path(path).name, path, options)
        wanted = [key for key in options.methods if can_run(key, contest, options.work)]
        for seed, key in [(seed, key) for seed in range(options.seeds) for key in wanted]:
            if (contest.name, key, seed) not in done:
                result = run(key, contest, options, seed)
                print(json.dumps(result), flush=True)
                results = [old for old in results if _place(old) != _place(result)] + [result]
                results_file.write_text(json.dumps(results, indent=1))
    if results:
        from side_by_side import write_report

        write_report(results, {key: method.title for key, method in METHODS.items()}, options.output, options.note)


def _place(result: dict) -> tuple:
    return result["set"], result["method"], result["seed"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", help="NAME=folder, table or starter/…; default: the starter sets")
    parser.add_argument("--model", help="weights for all methods; default: the starter checkpoint of the modality")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--train", type=int, default=500, help="rows")
    parser.add_argument("--test", type=int, default=1000, help="rows")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=1, help="how often each method runs")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=1800, help="seconds a method may take")
    parser.add_argument("--keep-memory", action="store_true", help="the allocator's settings for the peers too")
    parser.add_argument("--make-environments", nargs="+", choices=PACKAGES, default=[])
    parser.add_argument("--again", action="store_true", help="do not reuse results")
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--note", default="", help="a sentence for the report")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "benchmark")
    parser.add_argument("--output", type=Path, default=HERE.parent / "docs" / "benchmark.md")
    options = parser.parse_args()
    options.data = options.data or ["digits=starter/digits", "bbc=starter/bbc"]
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
