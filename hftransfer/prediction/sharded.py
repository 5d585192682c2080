"""The commands `embed` and `predict --shards`: many inputs in, a folder of Parquet files out."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data import inputs_modality, load_inputs
from hftransfer.models.references import ModelConfig
from hftransfer.prediction.embedder import Embedder, Pooling, of_checkpoint, of_run
from hftransfer.prediction.predictor import load
from hftransfer.prediction.readable import answered
from hftransfer.prediction.shards import Shards, wanted_shards, write_missing
from hftransfer.runtime.launch import World, launched_world
from hftransfer.runtime.shares import Worker, launched_worker

if TYPE_CHECKING:
    import pyarrow as pa

Number = Literal["float32", "float16"]


def predict(
    run: str,
    inputs: Sequence[str],
    output: Path,
    count: int,
    shard: int | None = None,
    columns: list[str] | None = None,
    views: int = 0,
) -> None:
    """Write the predictions of a run for `inputs` into `output`, one file for each shard. Raises `UserError`."""
    import pyarrow as pa

    from hftransfer.models.weights import weights_hash

    worker, wanted = _work(count, shard)
    predictor = load(run, world=_world())
    predictor.require("--shards")
    shards = Shards.of(predictor.frame(inputs, columns), output, count, {
        "weights": weights_hash(predictor.model), "columns": list(columns or ()), "views": views,
    })  # fmt: skip
    schema = pa.Schema.from_pandas(predictor.example_table(), preserve_index=False).append(
        pa.field("error", pa.string())
    )
    schema = schema.remove_metadata()

    def answer(rows: pd.DataFrame) -> "pa.Table":
        table = answered(predictor.modality.kind, rows, lambda good: predictor.answers(good, views))
        return pa.Table.from_pandas(table.reindex(columns=schema.names), schema, preserve_index=False)

    write_missing(shards, wanted, schema, answer, predictor.modality, worker)


def embed(
    data: str,
    output: Path,
    model: ModelConfig | None = None,
    run: str | None = None,
    count: int | None = None,
    shard: int | None = None,
    columns: list[str] | None = None,
    layer: int | None = None,
    pooling: Pooling = "auto",
    numbers: Number = "float32",
    batch_size: int = 32,
) -> None:
    """Write `id` and `features` of each input of `data` into `output`, by a checkpoint or by a finished run.

    Raises `UserError`.
    """
    if (model is None) == (run is None):
        raise UserError("Name what makes the features: --model REF (a checkpoint), or --run RUN (a finished run).")
    if run is not None and (layer is not None or pooling != "auto"):
        raise UserError("--layer and --pooling are of a checkpoint: a run gives what its last layer reads.")
    count = launched_worker().count if count is None else count
    worker, wanted = _work(count, shard)
    if run is not None:
        embedder = of_run(run, batch_size, _world())
        frame = load_inputs([data], embedder.modality.kind.name, columns, embedder.columns)
    else:
        modality = inputs_modality(data, columns)
        frame = load_inputs([data], modality, columns)
        embedder = of_checkpoint(model, modality, frame, layer, pooling, batch_size, _world())
    made_by = embedder.made_by | {"numbers": numbers, "inputs read by": embedder.modality.settings()}
    shards = Shards.of(frame, output, count, made_by)
    schema = _schema_of_features(embedder.width, numbers)
    write_missing(shards, wanted, schema, lambda rows: _features(embedder, rows, schema), embedder.modality, worker)


def _world() -> World:
    """Return the processes of the launch, where there are several: they choose different accelerators."""
    return launched_world() if launched_worker().count > 1 else World()


def _work(count: int, shard: int | None) -> tuple[Worker, Sequence[int]]:
    worker = launched_worker() if shard is None else Worker()
    return worker, wanted_shards(count, shard, worker)


def _schema_of_features(width: int, numbers: Number) -> "pa.Schema":
    import pyarrow as pa

    kind = {"float32": pa.float32(), "float16": pa.float16()}[numbers]
    return pa.schema([("id", pa.string()), ("features", pa.list_(kind, width)), ("error", pa.string())])


def _features(embedder: Embedder, rows: pd.DataFrame, schema: "pa.Schema") -> "pa.Table":
    """Return the features of a block of rows; null, with the reason as `error`, for what cannot be read."""
    import pyarrow as pa

    def answer(good: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"id": good["id"], "features": list(embedder.features(good))})

    found = answered(embedder.modality.kind, rows, answer).reindex(columns=schema.names)
    kind = schema.field("features").type
    missing = found["features"].isna().to_numpy()
    values = np.zeros((len(found), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    if not missing.all():
        values[~missing] = np.stack(found["features"][~missing].to_list())
    features = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), kind.list_size, mask=pa.array(missing))
    ids, errors = (pa.array(found[name].astype(object), pa.string(), from_pandas=True) for name in ("id", "error"))
    return pa.Table.from_arrays([ids, features, errors], schema=schema)
