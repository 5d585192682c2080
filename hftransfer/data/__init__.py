"""Labelled examples from any source: read, checked, divided, with ids that stay."""

from hftransfer.data.config import DataConfig, Modality, SplitConfig
from hftransfer.data.inputs import load_inputs
from hftransfer.data.load import LabelledData, load_data

__all__ = ["DataConfig", "LabelledData", "Modality", "SplitConfig", "load_data", "load_inputs"]
