"""Labelled examples from any source: read, checked, divided, with ids that stay."""

from hftransfer.data.config import DataConfig, SplitConfig
from hftransfer.data.inputs import inputs_modality, load_inputs
from hftransfer.data.load import LabelledData, load_data

__all__ = ["DataConfig", "LabelledData", "SplitConfig", "inputs_modality", "load_data", "load_inputs"]
