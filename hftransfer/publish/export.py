"""A run's model in other forms, each compared with the original on the run's own held-out inputs before it is kept.

`onnx` and `onnx-int8` write a folder with `model.onnx`, the processor and the config; labels, task, temperature (folded
into the weights) and the limits of `trust.json` stand in the metadata of the graph. `safetensors-merged` is the plain
model, adapters merged.
"""

import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from hftransfer.core.bars import Bar
from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.files import read_json, replacing, write_json
from hftransfer.evaluation.intervals import Measured, measure, wilson
from hftransfer.features.passes import as_arrays, in_pieces, joined
from hftransfer.models.layers import LayerGroups
from hftransfer.prediction.predictor import Predictor, load
from hftransfer.publish.round_trip import EIGHT_BITS, NEAR_VALUE, readable, readable_rows
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)

Format = Literal["onnx", "onnx-int8", "safetensors-merged"]
Answer = Callable[[dict[str, Tensor]], np.ndarray]

ROWS = 2000  # held-out inputs that are compared, at most
SECONDS = 30.0  # for all of them, half for each form
BATCH = 16
CALIBRATION_ROWS = 128  # training inputs that tell the ranges inside a convolutional net
TOLERANCE = 1e-4  # of float32 logits, relative to the largest where that is above 1
SHAPES_KNOWN = {"onnx.quant.pre_process": "onnxruntime.quant"}  # or the quantiser warns, on the root logger


def export(run: str | Path, format: Format, output: str | Path | None = None, seconds: float = SECONDS) -> Path:
    """Write the run's model as `format` into the folder `output` (None: `exports/<format>` in the run) and return it.

    `export.json` in it holds the comparison with the original (see `as_table`), on as many held-out inputs as both answer
    within `seconds`, 16 at least. Raises `UserError` for an unknown
    format, a folder that exists, a missing package, inputs that cannot be read again, and answers that differ.
    """
    if format not in get_args(Format):
        raise UserError(f"Unknown format {format!r}.{did_you_mean(format, get_args(Format))}")
    recorded = RecordedRun.open(run)
    recorded.require("export")
    target = Path(output) if output else recorded.folder / "exports" / format
    if target.exists():
        raise UserError(f"{target} exists already: choose another --output, or remove it.")
    with replacing(target) as unfinished:
        write_json(unfinished / "export.json", _write(recorded, format, unfinished, seconds))
    return target


def as_table(exported: Path) -> "Table":
    """Return the two sides of `export.json`: size, milliseconds an input, and the task's main metric with its interval."""
    from rich.table import Table

    found = read_json(Path(exported) / "export.json")
    same = found["agreement"]
    caption = (f"{found['rows']} inputs: {same['value']:.1%} of the decisions agree ({same['low']:.1%} to "
               f"{same['high']:.1%}), logits differ by {found['max_difference']:.2g} at most")  # fmt: skip
    table = Table(
        "form",
        "MiB",
        "ms one by one",
        f"ms, {BATCH} together",
        found["metric"],
        "95 % interval",
        title=str(exported),
        caption=caption,
    )
    for name in ("original", found["format"]):
        side = found["sides"][name]
        quality = side["quality"]
        speed = (f"{1000 * seconds:.2f}" for seconds in side["seconds_per_input"].values())
        table.add_row(name, f"{side['bytes'] / 2**20:.1f}", *speed,
                      f"{quality['value']:.4f}", f"{quality['low']:.4f} to {quality['high']:.4f}")  # fmt: skip
    return table


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(run: RecordedRun, format: Format, folder: Path, seconds: float) -> dict[str, Any]:
    """Write the export into `folder` and return how it compares. Raises `UserError` where its answers differ."""
    predictor, part = load(run.folder, use_cpu=True), _in_random_order(readable_rows(run, ROWS))
    frame = _with_further_inputs(run, part) if format == "onnx-int8" else part.frame
    batches = Batches(predictor, predictor.modality.encode(frame))
    if format == "safetensors-merged":
        shutil.copytree(run.folder / "model", folder)
        answer = _of_model(load(folder, use_cpu=True, trust_remote_code=run.runs_own_code).model)
    else:
        _write_onnx(run, predictor, next(iter(batches)), folder, quantised=format == "onnx-int8")
        answer = _of_graph(folder / "model.onnx")
    original = _timed(_of_model(predictor.model), batches, seconds / 2, "original")
    sides = _same_rows({"original": original, format: _timed(answer, batches, seconds / 2, format)})
    sizes = {"original": run.model_bytes, format: _weight(folder)}
    comparison = {"format": format} | compare(predictor.task, *(logits for logits, _ in sides.values()))
    for name, (logits, each) in sides.items():
        own = part.rows(np.arange(min(len(part), len(logits))))
        quality = asdict(_quality(predictor.task, own, logits[: len(own)]))
        comparison["sides"][name] = {"bytes": sizes[name], "seconds_per_input": each, "quality": quality}
    check(comparison)
    return comparison


def _write_onnx(
    run: RecordedRun, predictor: Predictor, batch: dict[str, Tensor], folder: Path, quantised: bool
) -> None:
    """By PyTorch's exporter, and ONNX Runtime's quantisation to 8 bits."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX needs the package {error.name}: pip install 'hftransfer[export]'.") from None
    leave_out = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
    shutil.copytree(run.folder / "model", folder, ignore=leave_out)
    graph = _traced(predictor.model, batch)
    graph.model.metadata_props.update(_metadata(run) | SHAPES_KNOWN)
    graph.save(str(folder / "model.onnx"))
    if quantised:
        from hftransfer.publish.quantise import quantise

        quantise(folder / "model.onnx", _calibration(run, predictor), _averaging_layer(run, predictor.model))


class _Logits(nn.Module):
    """The model as a function of tensors alone, in the order of `names`."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(**dict(zip(self.names, inputs, strict=True))).logits


def _traced(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """Return the graph with the number of rows open, and for tokens their number too."""
    names = list(batch)
    pair = [torch.cat([value, value])[:2] for value in batch.values()]  # a size of 1 would be taken for a constant
    open_axes = tuple({axis: torch.export.Dim.DYNAMIC for axis in range(2 if v.ndim == 2 else 1)} for v in pair)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about its own parts
        return torch.onnx.export(
            _Logits(model, names).eval(), tuple(pair), dynamo=True, input_names=names, output_names=["logits"],
            dynamic_shapes=(open_axes,), verbose=False,
        )  # fmt: skip


def _metadata(run: RecordedRun) -> dict[str, str]:
    """Return what a program needs that has nothing but the graph: strings, most of them JSON."""
    limits = run.folder / "trust.json"
    values = {
        "labels": json.dumps(run.task.output_names, ensure_ascii=False),
        "task": run.task.problem_type or run.record.pipeline_task,
        "temperature": json.dumps(run.record.temperature),
        "temperature_is_folded_in": "true",
    }
    return values | ({"trust": limits.read_text(encoding="utf-8")} if limits.is_file() else {})


def _averaging_layer(run: RecordedRun, model: nn.Module) -> str | None:
    """Return the path of the layer that takes the mean over tokens, where the head reads that (`sources.put_mean_layer`)."""
    feature_source = run.record.feature_source
    return LayerGroups.of(model).blocks[-1] if feature_source and feature_source.chosen.startswith("mean") else None


def _calibration(run: RecordedRun, predictor: Predictor) -> Iterator[dict[str, np.ndarray]]:
    """Batches of training rows, spread evenly: the held-out ones must not shape what they are to judge."""
    chosen = _calibrating(run)
    if not len(chosen):
        raise UserError(
            f"None of the training inputs of {run.folder} can be read again: 8 bits are calibrated on them."
        )
    items = predictor.modality.encode(chosen)
    for start in range(0, len(items), BATCH):
        yield {name: value.numpy() for name, value in predictor.modality.collate(items[start : start + BATCH]).items()}


def _calibrating(run: RecordedRun) -> pd.DataFrame:
    """Training rows that tell the ranges: at most half of them, for the others tell whether both models agree."""
    train = run.splits[run.splits["split"] == "train"]
    train = train.iloc[readable(train, run.record.modality, len(train))]
    chosen = readable(train, run.record.modality, min(CALIBRATION_ROWS, (len(train) + 1) // 2))
    return train.iloc[chosen].reset_index(drop=True)


# --- comparing --------------------------------------------------------------------------------------------------------


def compare(task: Task, original: np.ndarray, exported: np.ndarray) -> dict[str, Any]:
    """Two sets of logits (N, C) of the same rows: largest difference, and the share of decisions that agree.

    Of rows with several units the logits are those of all units; a row agrees where all of its units do.
    """
    same = _agree(task, original, exported)
    original, exported = task.units(original), task.units(exported)
    agreement = Measured(float(same.mean()), *wilson(same.sum(), len(same)), len(same))
    return {
        "rows": len(same),
        "metric": task.headline,
        "max_difference": float(np.abs(original - exported).max()),
        "largest_logit": float(np.abs(original).max()),
        "agreement": asdict(agreement),
        "sides": {},
    }


def check(comparison: dict[str, Any]) -> None:
    """Raise `UserError` where the exported model is not the original: float32 by its logits, int8 by its decisions.

    Of int8 a test of non-inferiority is asked: the lower end of the interval of agreement lies above `EIGHT_BITS`.
    """
    same, difference = comparison["agreement"], comparison["max_difference"]
    if comparison["format"] == "onnx-int8":
        if same["low"] < EIGHT_BITS:
            raise UserError(
                f"The 8-bit model is not shown to decide as the original: {same['value']:.1%} of {comparison['rows']} "
                f"inputs agree (95 % interval {same['low']:.1%} to {same['high']:.1%}), and the lower end must reach "
                f"{EIGHT_BITS:.0%}. {_describe_needed(same)} It was not written: use --format onnx."
            )
    elif not difference <= TOLERANCE * max(1.0, comparison["largest_logit"]):
        raise UserError(
            f"The exported model answers otherwise than the original: logits differ by {difference:.2g} on "
            f"{comparison['rows']} held-out inputs, expected at most {TOLERANCE:g}. It was not written."
        )


def _describe_needed(agreement: dict[str, Any]) -> str:
    needed = inputs_needed(agreement["value"])
    if needed is None:
        return "No number of inputs shows it at this agreement."
    return f"At this agreement it takes {needed:,} inputs."


def inputs_needed(agreement: float) -> int | None:
    """Return how many inputs lift Wilson's lower end to `EIGHT_BITS` at this share of agreement; None where none do."""
    if agreement <= EIGHT_BITS:
        return None
    quantile = NormalDist().inv_cdf(0.975)
    return math.ceil(round(quantile**2 * EIGHT_BITS * (1 - EIGHT_BITS) / (agreement - EIGHT_BITS) ** 2, 6))


def _agree(task: Task, original: np.ndarray, exported: np.ndarray) -> np.ndarray:
    """(N,) whether both decide alike."""
    if not task.has_classes:
        return (np.abs(original - exported) <= NEAR_VALUE * np.maximum(original.std(0), 1e-6)).all(1)
    decided = (task.decide(task.probabilities(logits)) for logits in (original, exported))
    return np.array([np.array_equal(first, second) for first, second in zip(*decided, strict=True)])


def _quality(task: Task, part: Part, logits: np.ndarray) -> Measured:
    return measure(task, part.targets, task.probabilities(logits), part.groups)[task.headline]


def _with_further_inputs(run: RecordedRun, part: Part) -> pd.DataFrame:
    """Append other inputs of the run to `part`, up to `ROWS`: whether two models agree needs no label.

    Held-out inputs come first. Those that calibrate the 8-bit form are left out.
    """
    others = run.splits[~run.splits["id"].isin(part.ids)]
    others = others[~others["id"].isin(_calibrating(run)["id"])]
    others = others.sort_values("split", kind="stable", ascending=False)  # validation before train
    further = others.iloc[readable(others, run.record.modality, ROWS - len(part))] if len(part) < ROWS else others[:0]
    return pd.concat([part.frame, further], ignore_index=True)[part.frame.columns]


@dataclass(frozen=True)
class Batches:
    """Batches of encoded inputs, made when they are asked for: all of them may be too many for the memory.

    A batch has the windows of `BATCH` inputs, which is one for each where the modality has no others.
    """

    predictor: Predictor
    items: list[Any]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for number in range(-(-len(self.items) // BATCH)):
            yield self.predictor.modality.collate(self._pieces(number)[0])

    def of_inputs(self, number: int, logits: np.ndarray) -> np.ndarray:
        """Return the logits of the inputs of a batch, (n, C) or of their units, from what a form has for the batch."""
        pieces, rows = self._pieces(number)
        values = as_arrays(self.predictor.modality.kind.read(pieces, torch.from_numpy(logits)))
        return joined(ragged(values) if isinstance(values, list) else values, rows, int(rows.max()) + 1)

    def _pieces(self, number: int) -> tuple[list[Any], np.ndarray]:
        return in_pieces(self.predictor.modality.kind, self.items[number * BATCH : (number + 1) * BATCH])


def _in_random_order(part: Part) -> Part:
    """Return the rows so that the first of them stand for all: where time is short, the others are left out."""
    return part.rows(np.random.default_rng(0).permutation(len(part)))


def _of_model(model: nn.Module) -> Answer:
    def answer(batch: dict[str, Tensor]) -> np.ndarray:
        with torch.inference_mode():
            return model(**batch).logits.numpy()

    return answer


def _of_graph(file: Path) -> Answer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # the same for both sides
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    wanted = [given.name for given in session.get_inputs()]
    return lambda batch: session.run(None, {name: batch[name].numpy() for name in wanted})[0]


Timed = tuple[np.ndarray, dict[str, float]]


def _same_rows(sides: dict[str, Timed]) -> dict[str, Timed]:
    """Return the logits of the rows that all sides answered in their time."""
    rows = min(len(logits) for logits, _ in sides.values())
    return {name: (logits[:rows], seconds) for name, (logits, seconds) in sides.items()}


def _timed(answer: Answer, batches: Batches, seconds: float, title: str) -> Timed:
    """Return the logits of the first rows, and the seconds that each takes: one by one, and `BATCH` together.

    No further batch is begun where it would end after `seconds`; the first one is always answered.
    """
    begin = time.perf_counter()
    first = next(iter(batches))
    single = [
        {name: value[row : row + 1] for name, value in first.items()} for row in range(min(BATCH, len(batches.items)))
    ]
    alone = _run(answer, single)
    found, spent, started = [], 0.0, time.perf_counter()
    with Bar(total=len(batches.items), desc=f"compare ({title})", unit="row") as bar:
        for number, batch in enumerate(batches):
            start = time.perf_counter()
            if number and start - begin + (start - started) / number > seconds:
                break
            found.append(batches.of_inputs(number, answer(batch)))
            spent += time.perf_counter() - start
            bar.update(len(found[-1]))
    logits = np.concatenate(found)
    return logits, {"1": alone, str(BATCH): spent / len(logits)}


def _run(answer: Answer, batches: list[dict[str, Tensor]]) -> float:
    """Return the seconds of a batch; the first is run once before, to warm up."""
    answer(batches[0])
    begin = time.perf_counter()
    for batch in batches:
        answer(batch)
    return (time.perf_counter() - begin) / len(batches)


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
