"""An ONNX graph with 8-bit weights, by ONNX Runtime: dynamically for transformers, calibrated for convolutional nets.

Linear layers measure their inputs as they come (dynamic). For convolutions that form is slow and coarse: their ranges are
taken beforehand from training rows (static, QDQ, one scale a channel; Nagel et al. 2021, arXiv:2106.08295, section 3).
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

Batch = dict[str, np.ndarray]


def quantise(file: Path, rows: Iterable[Batch], averaging: str | None = None) -> None:
    """Put the 8-bit form of the graph in `file` into its place. `rows` are batches of training inputs.

    The layer `averaging` stays in float: it adds numbers a thousand times apart, of which 8 bits lose the small ones.
    """
    whole = file.with_name("float.onnx")
    os.replace(file, whole)
    metadata = {entry.key: entry.value for entry in onnx.load(whole, load_external_data=False).metadata_props}
    if is_convolutional(whole):
        _calibrated(whole, file, rows)
    else:
        _dynamic(whole, file, averaging)
    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, file)
    for left in file.parent.glob("float*"):
        left.unlink()


def is_convolutional(file: Path) -> bool:
    """Whether convolutions outnumber the linear layers: a ViT has one, for its patches."""
    kinds = [node.op_type for node in onnx.load(file, load_external_data=False).graph.node]
    return kinds.count("Conv") > kinds.count("MatMul") + kinds.count("Gemm")


def _dynamic(whole: Path, file: Path, averaging: str | None) -> None:
    nodes = onnx.load(whole, load_external_data=False).graph.node
    scope = f"'model.{averaging}'"  # as the exporter writes the modules that a node came from
    in_float = [node.name for node in nodes if any(scope in each.value for each in node.metadata_props)]
    quantize_dynamic(
        whole, file, op_types_to_quantize=["MatMul", "Gemm", "Gather"], per_channel=True,
        weight_type=QuantType.QInt8, nodes_to_exclude=in_float,
    )  # fmt: skip


def _calibrated(whole: Path, file: Path, rows: Iterable[Batch]) -> None:
    prepared = whole.with_name("float.prepared.onnx")
    quant_pre_process(whole, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, file, _Rows(iter(rows)), per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


class _Rows(CalibrationDataReader):
    def __init__(self, batches: Iterator[Batch]):
        self.batches = batches

    def get_next(self) -> Batch | None:
        return next(self.batches, None)
