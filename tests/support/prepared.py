"""What a run in a process of its own needs, imported once in the server that such processes are forked from."""

import gc

import cleanlab.filter  # noqa: F401
import torch.distributed.fsdp  # noqa: F401
import torch.optim.adamw  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401
import transformers.models.bert.tokenization_bert  # noqa: F401
from transformers import conversion_mapping

import hftransfer.doctor
import hftransfer.pipeline.self_check
import hftransfer.prediction.predictor
import hftransfer.probe.fit
import hftransfer.publish.card
import hftransfer.report
import hftransfer.report.gallery
import hftransfer.report.sections
import hftransfer.train
import hftransfer.training.trainer
import tests.support.processes  # noqa: F401
from hftransfer.report import plots
from tests.support.runs import empty_plot

plots._svg = empty_plot
conversion_mapping.get_checkpoint_conversion_mapping("bert")  # transformers compiles its patterns at the first model
hftransfer.report._template()
hftransfer.publish.card._template()
gc.collect()
gc.freeze()  # every training collects garbage: what is imported stays
