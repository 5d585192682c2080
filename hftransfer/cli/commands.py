"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hftransfer.cli import planning
from hftransfer.cli.arguments import (
    DataOrConfig,
    Details,
    Json,
    NumberOfShards,
    Overrides,
    RunFolder,
    Shard,
    check_choice,
    is_yaml,
    read_config,
)
from hftransfer.cli.tables import (
    WRITERS,
    as_store_table,
    check_table_name,
    show_evaluation,
    show_metrics,
    show_predictions,
    write_table,
)
from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.terminal import display, printable, show, show_log
from hftransfer.core.version import __version__

app = typer.Typer(
    name="hftransfer",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"hftransfer {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Adapt pretrained checkpoints to small labelled sets of images, texts and recordings."""


def main() -> None:
    """Entry point: a user's mistake ends in one message and exit code 2, never in a traceback."""
    _quiet()
    try:
        app()
    except UserError as error:
        print(printable(f"Error: {error}"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


def _quiet() -> None:
    """Our own log is what the user reads; libraries speak up when something is wrong."""
    from hftransfer.runtime import devices, launch

    devices.wait_briefly()  # before torch is imported
    devices.collect_seldom()
    devices.keep_freed_memory()
    devices.name_the_user()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # data loaders fork
    show_log()
    logging.getLogger("hftransfer").setLevel(logging.INFO if launch.process_rank() == 0 else logging.ERROR)


@app.command()
def train(
    data_or_config: DataOrConfig = None,
    overrides: Overrides = None,
    data: Annotated[str | None, typer.Option(help="training data, in place of the configuration's")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder, timm architecture, or starter/…")] = None,
    strategy: Annotated[str | None, typer.Option(help="probe, frozen, full, gradual, lora, scratch or auto")] = None,
    output: Annotated[str | None, typer.Option(help="run folder to make")] = None,
    patch: Annotated[str | None, typer.Option(help="decisions about single rows, as `review` writes them")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue an interrupted run")] = False,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Adapt a checkpoint to labelled images, texts or recordings and write a run folder."""
    config = read_config(data_or_config, overrides or [], data, model, strategy, output, patch)
    from hftransfer.pipeline.summary import result_lines
    from hftransfer.runs.record import MetricsRecord
    from hftransfer.train import run

    finished = run(config, resume=resume)
    if finished.metrics:
        metrics = MetricsRecord.of(finished.metrics)
        if as_json or verbose:
            show_metrics(metrics, finished.folder, as_json)
        if not as_json:
            print("\n".join(result_lines(finished.folder, metrics)))
        if finished.interruption:
            print(f"Ended early: {finished.interruption.describe()}", file=sys.stderr)
            raise typer.Exit(finished.interruption.exit_code)


app.command()(planning.advise)


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="other labelled data, in place of the run's own parts")] = None,
    input: Annotated[
        list[str] | None, typer.Option(help="input column(s) of --data; default: those of the run")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="label column(s) of --data; default: those of the run")
    ] = None,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Show how good a run is, on its own test part or on other labelled data."""
    from hftransfer.runs import folder as run_folder
    from hftransfer.runs.record import MetricsRecord

    folder = run_folder.open_run(run)
    if data is None:
        return show_metrics(MetricsRecord.read(folder), folder, as_json)
    from hftransfer.evaluation import EvaluationConfig
    from hftransfer.prediction.evaluate import evaluate as evaluate_on

    columns = {name: value for name, value in (("input", _one(input)), ("label", _one(label))) if value}
    found = evaluate_on(folder, data, columns, EvaluationConfig())
    show_evaluation(data, found, folder, as_json)


def _one(values: list[str] | None) -> str | list[str] | None:
    return values[0] if values and len(values) == 1 else values


@app.command()
def predict(
    run: Annotated[str, typer.Argument(help="a run folder or a model folder")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="files, folders, globs, a table, texts (behind -- where one begins with -), or - for standard input"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="write a CSV, JSON or Parquet file in place of a table; with --shards a folder")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="input column(s) of a table")] = None,
    views: Annotated[int, typer.Option(min=0, help="average this many augmented views of each image")] = 0,
    explain: Annotated[
        Path | None, typer.Option(help="folder to write heat maps, or weights of words or moments, into")
    ] = None,
    shards: NumberOfShards = None,
    shard: Shard = None,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Predict labels or values for new inputs."""
    if shards is not None:
        from hftransfer.prediction.sharded import predict as predict_shards

        _check_shards(output, explain, as_json)
        return predict_shards(run, inputs, output, shards, shard, column, views)
    if shard is not None:
        raise UserError("--shard names one of several shards: say how many with --shards.")
    check_table_name(output)
    from hftransfer.prediction.predictor import load

    predictor = load(run)
    if explain is not None:
        predictor.require("--explain")
    frame = predictor.frame(inputs, column)
    table = predictor.table(frame, views)
    if explain is not None:
        from hftransfer.prediction.explain import explain as explained
        from hftransfer.prediction.explain import write_explanations

        read = table["error"].isna().to_numpy() if "error" in table else slice(None)
        shown = frame[read].reset_index(drop=True)
        write_explanations(explained(predictor, shown), shown["id"].tolist(), explain)
    if predictor.task.by_pixel:
        table = _without_masks(table, predictor.task, output)
    if output is not None:
        flat = output.suffix == ".csv"
        write_table(predictor.task.as_rows(table) if flat else table, output, predictor.task.row_noun(flat))
    elif as_json:
        print(table.to_json(orient="records", force_ascii=False))
    else:
        show_predictions(table, predictor.task)
    if "error" in table:
        print(f"{table['error'].notna().sum()} of {len(table)} inputs could not be read: see `error`.", file=sys.stderr)
        raise typer.Exit(1)


def _check_shards(output: Path | None, explain: Path | None, as_json: bool) -> None:
    if output is None or output.suffix in WRITERS:
        raise UserError("--shards writes one Parquet file for each shard into a folder: name it with --output.")
    if explain is not None or as_json:
        raise UserError("--explain and --json do not go with --shards: leave them out.")


@app.command()
def embed(
    data: Annotated[str, typer.Argument(help="a folder, glob or table of inputs, or - for standard input")],
    output: Annotated[Path, typer.Option(help="folder to write one Parquet file for each shard into")],
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="a checkpoint: Hub id, folder, timm architecture, starter/…")
    ] = None,
    run: Annotated[str | None, typer.Option(help="a run folder: what its last layer reads")] = None,
    shards: NumberOfShards = None,
    shard: Shard = None,
    column: Annotated[list[str] | None, typer.Option(help="input column(s) of a table")] = None,
    layer: Annotated[int | None, typer.Option(min=1, help="block of --model to read; default: the last")] = None,
    pooling: Annotated[str, typer.Option(help="head (as the checkpoint's head), mean (of tokens) or auto")] = "auto",
    numbers: Annotated[str, typer.Option(help="float32 or float16")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="inputs that pass through the network at once")] = 32,
    verbose: Details = False,
) -> None:
    """Write the features of inputs, one file for each shard, by any number of workers in any order."""
    from hftransfer.config import parse_overrides, with_overrides

    check_choice("--pooling", pooling, ("auto", "head", "mean"))
    check_choice("--numbers", numbers, ("float32", "float16"))
    values = with_overrides({"data": {}}, parse_overrides(overrides or []) | ({"model.name": model} if model else {}))
    from hftransfer.prediction.sharded import embed as embed_shards

    named = values.model if model else None
    embed_shards(data, output, named, run, shards, shard, column, layer, pooling, numbers, batch_size)


def _without_masks(table: Any, task: Any, output: Path | None) -> Any:
    """Return a table of predictions with masks as files beside `output`, or without them where none is written."""
    from hftransfer.prediction.mask_output import write_masks

    if output is None:
        return table.drop(columns="mask")
    folder = output.with_name(f"{output.stem}-masks")
    table = write_masks(table, task, folder)
    print(f"{table['mask'].notna().sum()} masks in {folder}")
    return table


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration."""
    from hftransfer.config import RunConfig

    print(json.dumps(RunConfig.model_json_schema(), indent=2))


@app.command()
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="remove everything that is stored")] = False,
    space: Annotated[str | None, typer.Option(help="with --clear: only this space")] = None,
    as_json: Json = False,
) -> None:
    """See or clear the store of computed features."""
    from dataclasses import asdict

    from hftransfer.features.store import FeatureStore

    store = FeatureStore()
    if clear:
        known = [entry.space for entry in store.summary()]
        if space and space not in known:
            raise UserError(f"There is no space {space!r} in {store.folder}.{did_you_mean(space, known)}")
        return print(f"{store.clear(space) / 2**20:.1f} MiB freed in {store.folder}")
    entries = store.summary()
    show([asdict(entry) for entry in entries], lambda: as_store_table(store.folder, entries), as_json)


@app.command()
def report(run: RunFolder) -> None:
    """Make the one-page report of a run: metrics with intervals, curves, confusion, errors, what moved."""
    from hftransfer.report import write_report

    print(write_report(run))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(help="two or more run folders with the same test rows")],
    metric: Annotated[str | None, typer.Option(help="metric to compare by; default: the task's own")] = None,
    as_json: Json = False,
) -> None:
    """Compare runs on the same rows: paired tests, differences with intervals, and no winner that noise could make."""
    from hftransfer.evaluation.comparison import as_table
    from hftransfer.evaluation.comparison import compare as compare_runs

    comparison = compare_runs(runs, metric)
    show(comparison.to_dict(), lambda: as_table(comparison), as_json)


@app.command()
def doctor(
    data_or_config: DataOrConfig = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="checkpoint: checks lengths, sizes, memory and machine too")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="write a cleaned copy beside the data")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="measure what a random split would have reported")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="warnings count in the exit code")] = False,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Find what would spoil a training, before it: broken files, wrong labels, duplicates, leaks."""
    from hftransfer.config import read_yaml

    known = model or (is_yaml(data_or_config) and "model" in read_yaml(Path(data_or_config)))
    if measure and not known:
        raise UserError("--measure trains a probe on both splits: name the checkpoint with --model.")
    config = read_config(data_or_config, overrides or [], None, model or (None if known else "none"), None, None)
    from hftransfer.doctor import doctor as examine

    sys.exit(examine(config.data, config if known else None, fix, as_json, strict, measure))


app.command()(planning.rank)
app.command()(planning.curve)
app.command("next")(planning.next_to_label)


@app.command()
def explain(finding: Annotated[str, typer.Argument(help="the id of a finding of the doctor")]) -> None:
    """Say what a finding of the doctor means and how to fix it."""
    from hftransfer.doctor.findings import explain as explained

    print(explained(finding))


@app.command()
def export(
    run: RunFolder,
    format: Annotated[str, typer.Option(help="onnx, onnx-int8 or safetensors-merged")] = "onnx",
    output: Annotated[Path | None, typer.Option(help="folder to make; default: exports/FORMAT in the run")] = None,
    seconds: Annotated[float, typer.Option(min=0, help="time to compare both forms; 16 inputs at least")] = 30,
    verbose: Details = False,
) -> None:
    """Write the model in another form, compared with the original on held-out inputs before it is kept."""
    from hftransfer.publish.export import as_table
    from hftransfer.publish.export import export as export_run

    display(as_table(export_run(run, format, output, seconds)))


@app.command()
def demo(
    runs: Annotated[list[str], typer.Argument(help="a run folder, a model folder or a Hub id; or two, to compare")],
    share: Annotated[bool, typer.Option("--share", help="a public link for a while")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port on this machine")] = None,
) -> None:
    """Try a model in the browser.

    The page answers on this machine alone. GRADIO_SERVER_NAME=0.0.0.0 opens it to the network (in a container),
    GRADIO_ROOT_PATH=/demo serves it behind a proxy under that path, --share gives a public link without examples of the data.
    """
    from hftransfer.apps.demo import launch

    launch(runs, share, port)


@app.command()
def review(
    run: RunFolder,
    share: Annotated[bool, typer.Option("--share", help="a public link for a while")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port on this machine")] = None,
) -> None:
    """Look at likely label errors in the browser; what you decide becomes a patch for `train --patch`."""
    from hftransfer.apps.review.page import launch

    launch(run, share, port)


@app.command()
def studio(
    folder: Annotated[str, typer.Argument(help="the folder with the data; runs go to FOLDER/runs")] = ".",
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="port on this machine")] = None,
) -> None:
    """Open the whole workflow in the browser: data, training, results and labels, on this machine alone."""
    from hftransfer.studio.page import launch

    launch(folder, port)


@app.command()
def push(
    run: RunFolder,
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub")],
    private: Annotated[bool, typer.Option("--private")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="add a commit to repositories that hold something; files of others stay")
    ] = False,
    adapter: Annotated[bool, typer.Option("--adapter", help="the adapter of a LoRA run alone")] = False,
    dry_run: Annotated[
        Path | None, typer.Option(help="write the repository into this folder, ask the Hub nothing")
    ] = None,
    space: Annotated[str | None, typer.Option(help="OWNER/NAME of a demo Space to fill as well")] = None,
    verbose: Details = False,
) -> None:
    """Put a run's model on the Hub, with card, metrics and round-trip certificate."""
    from hftransfer.publish.hub import push as push_run

    pushed = push_run(run, repo_id, private, update, adapter, dry_run, space)
    if pushed:
        print("\n".join(filter(None, (pushed.url, pushed.space))))
