"""The fixed window of audio networks: how long it is, and how it is cut to the recordings at hand."""

import logging
from typing import Any

import numpy as np

log = logging.getLogger(__name__)


def set_window(model: Any, processor: Any, seconds: int) -> None:
    """Read `seconds` where the checkpoint reads a longer, fixed window: positions beyond it are dropped.

    Whisper's positions are fixed sinusoids, of which the first ones remain (arXiv 2212.04356, section 2.2). AST's are
    learned, one for each patch of frequency and time (arXiv 2104.01778, section 2.2), of which the first times remain.
    """
    window = window_of(processor)
    if window is None or seconds >= window:
        return
    log.info("The model reads the first %d s of each recording (its checkpoint reads %.3g s).", seconds, window)
    if hasattr(processor, "n_samples"):
        _cut_whisper(model, processor, seconds)
    else:
        _cut_ast(model, processor, seconds)


def _cut_whisper(model: Any, processor: Any, seconds: int) -> None:
    from torch import nn

    processor.chunk_length, processor.n_samples = seconds, seconds * processor.sampling_rate
    processor.nb_max_frames = processor.n_samples // processor.hop_length
    positions = processor.nb_max_frames // 2
    model.config.max_source_positions = model.encoder.max_source_positions = positions
    kept = model.encoder.embed_positions.weight.data[:positions].clone()
    model.encoder.embed_positions = nn.Embedding.from_pretrained(kept, freeze=True)


def _cut_ast(model: Any, processor: Any, seconds: int) -> None:
    import torch
    from torch import nn

    config, embeddings = model.config, model.audio_spectrogram_transformer.embeddings
    old, high = (
        (size - config.patch_size) // stride + 1
        for size, stride in ((config.max_length, config.time_stride), (config.num_mel_bins, config.frequency_stride))
    )
    config.max_length = processor.max_length = 100 * seconds
    wide = (config.max_length - config.patch_size) // config.time_stride + 1
    positions = embeddings.position_embeddings.data
    special = positions.shape[1] - high * old
    grid = positions[:, special:].reshape(1, high, old, -1)[:, :, :wide].flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat([positions[:, :special], grid], 1).contiguous())


def window_of(processor: Any) -> float | None:
    """Return the seconds to which a processor pads every recording; None where it takes any length."""
    short, long = (
        np.shape(_processed(processor, [np.zeros(int(seconds * processor.sampling_rate), np.float32)]))
        for seconds in (0.1, 0.3)
    )
    if short != long:
        return None
    samples = getattr(processor, "n_samples", None)
    return samples / processor.sampling_rate if samples else processor.max_length / 100  # a frame each 10 ms


def _processed(processor: Any, arrays: list[np.ndarray]) -> Any:
    found = processor(arrays, sampling_rate=processor.sampling_rate, return_tensors="np")
    return found[processor.model_input_names[0]]
