"""Recordings: sound files of any rate and number of channels, mixed to one and resampled once to the model's rate.

Two kinds of processors exist. One pads every recording to a fixed window (Whisper, AST): the window is cut to the length of
the recordings. The other takes any length (wav2vec2, HuBERT, WavLM, SEW); without a mask over padding, only recordings of
equal length share a batch, so that no prediction depends on its neighbours.
"""

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.sound_files import (
    MAGIC,
    MEL_RATE,
    OTHERS,
    SUFFIXES,
    UnreadableAudio,
    encoded,
    is_cut_off,
    mfcc_statistics,
    opened,
    read_content,
    read_sound,
    resampled,
    spectrogram,
    thumbnail,
)
from hftransfer.modalities.base import ModalityKind
from hftransfer.modalities.duplicates import similar_images
from hftransfer.modalities.image import AugmentationConfig
from hftransfer.modalities.inspection import Inspection, digest, each_in_threads
from hftransfer.models.windows import set_window, window_of

if TYPE_CHECKING:
    import torch
    from PIL import Image

log = logging.getLogger(__name__)

SHORTEST = 0.05  # seconds: two frames of a wav2vec2
LOOKED_AT = 30.0  # seconds of each recording that checks and pictures look at
PLAYED, PLAYED_RATE = 10.0, 16000  # seconds and Hz of a recording on a page
SHARE_COVERED = 0.99  # of the training recordings that the window holds whole
SHIFT, GAIN = 0.1, 6.0  # largest change by augmentation, in seconds and decibels


class AudioKind(ModalityKind):
    name = "audio"
    noun, plural = "recording", "recordings"
    files = arrays = True
    suffixes = SUFFIXES
    column_names = frozenset("audio file path filename file_name filepath file_path audio_path wav clip sound".split())
    source_columns = ModalityKind.source_columns | {"speaker", "speaker_id", "client_id", "singer", "session_id"}
    feature = "Audio"
    auto_class_name = "AutoModelForAudioClassification"
    processor_class = "AutoFeatureExtractor"
    pipeline_task = "audio-classification"
    example_checkpoints = "facebook/wav2vec2-base or starter/whisper-base"
    model_settings = ("max_seconds",)
    augments = True
    content = shows = "sound"
    raw_model = "model on MFCC statistics"
    default_checkpoints = ("starter/whisper-base", "openai/whisper-base")
    api_names = ("audio",)
    fault_finding = "recording-broken"

    def recognises(self, sample: Sequence[Any]) -> bool:
        """Names of sound files, encoded sound, or arrays with their rate."""
        return all(map(_is_sound, sample))

    def foreign(self, sample: Sequence[Any]) -> str | None:
        if any(_is_array(value) for value in sample):
            return "samples without their rate, not {'array': …, 'sampling_rate': …}"
        return None

    def describe_passed_over(self, names: list[str]) -> str | None:
        found = [name for name in names if Path(name).suffix.lower() in OTHERS]
        if not found:
            return None
        return f"{len(found)} files such as {found[0]} cannot be read: convert them (ffmpeg -i IN OUT.wav)."

    def encoded(self, value: Any) -> Any:
        """Arrays with their rate become the bytes of a WAV file."""
        return encoded(value["array"], value["sampling_rate"]) if _is_dict_of_samples(value) else value

    def suffix_of(self, content: bytes) -> str:
        with opened(content) as file:
            return {"OGG": "ogg", "FLAC": "flac", "MPEG": "mp3", "AIFF": "aiff"}.get(file.format, "wav")

    def bytes_of(self, source: str | bytes) -> bytes:
        return read_content(source)

    def inspect(self, frame: pd.DataFrame) -> list[Inspection]:
        return each_in_threads(self.inspection, list(frame["input"]), "checking recordings")

    def inspection(self, *values: Any) -> Inspection:
        """Rate, channels, length, loudest value and share of clipped samples; a broken file comes back with its fault."""
        (source,) = values
        try:
            content = self.bytes_of(source)
            with opened(content) as file:
                about = {"rate": file.samplerate, "channels": file.channels, "format": file.format}
                samples = file.read(math.ceil(LOOKED_AT * file.samplerate), dtype="float32", always_2d=True)
                seconds = file.frames / file.samplerate
            if fault := self._fault(samples, seconds, content):
                return Inspection("", fault)
            peak = float(np.abs(samples).max())
            clipped = float((np.abs(samples) >= 0.999).mean()) if peak >= 0.999 else 0.0
            mono = resampled(samples.mean(1), about["rate"], MEL_RATE)
            return Inspection(
                digest(content), **about, seconds=seconds, peak=peak, clipped=clipped, thumbnail=thumbnail(mono)
            )
        except UnreadableAudio as error:
            return Inspection("", error.reason)

    def _fault(self, samples: np.ndarray, seconds: float, content: bytes) -> str | None:
        if not len(samples):
            return "it holds no samples"
        if is_cut_off(content):
            return "it is cut off: its header declares more than there is"
        if seconds < SHORTEST:
            return f"it lasts {seconds:.3f} s, and at least {SHORTEST} s are needed"
        return None if np.isfinite(samples).all() else "it holds values that are not finite"

    def near_duplicates(self, frame: pd.DataFrame, inspections: Sequence[Inspection]) -> np.ndarray:
        """Return recordings of nearly the same length with nearly the same spectrogram, whatever their loudness and format."""
        pairs = similar_images(
            [inspection.thumbnail for inspection in inspections], [1] * len(inspections), mirrored=False
        )
        lengths = np.array([inspection.seconds for inspection in inspections])
        ratio = np.abs(np.log(np.maximum(lengths[pairs[:, 0]], 1e-3) / np.maximum(lengths[pairs[:, 1]], 1e-3)))
        return pairs[ratio < 0.03]

    def traits(self, inspection: Inspection) -> dict[str, Any]:
        return {
            "sample rate": inspection.rate, "number of channels": inspection.channels, "file format": inspection.format,
            "length": round(inspection.seconds, 2), "loudness": round(inspection.peak, 2),
        }  # fmt: skip

    # --- the network

    def fitted(self, model: Any, inspections: Sequence[Inspection]) -> Any:
        """Return the `ModelConfig` with the window that holds 99 % of the recordings, in whole seconds."""
        lengths = [inspection.seconds for inspection in inspections if not inspection.fault]
        if model.max_seconds is not None or not lengths:
            return model
        return model.model_copy(update={"max_seconds": max(1, math.ceil(np.quantile(lengths, SHARE_COVERED)))})

    def prepare_config(self, model_config: Any, keep_head: bool) -> None:
        """Hand all features to a new head, and draw nothing at random inside of the network.

        A layer that is skipped at random would skip the stored activations; masks fail on recordings shorter than they.
        """
        for name in ("layerdrop", "encoder_layerdrop"):
            if hasattr(model_config, name):
                setattr(model_config, name, 0.0)
        if hasattr(model_config, "apply_spec_augment"):
            model_config.apply_spec_augment = False
        if not keep_head and hasattr(model_config, "classifier_proj_size"):
            model_config.classifier_proj_size = model_config.hidden_size
            model_config.use_weighted_layer_sum = False

    def check_processor(self, processor: Any, model: Any, name: str) -> None:
        if not isinstance(getattr(processor, "sampling_rate", None), int):
            raise UserError(f"The processor of {name} has no sampling rate, so it does not read recordings.")

    def adjust(self, model: Any, processor: Any, config: Any, name: str) -> tuple[Any, Any]:
        if getattr(model.config, "feat_extract_norm", None) == "group":
            processor.return_attention_mask = False  # its statistics are over the padding too, masked or not
        if config.max_seconds:
            set_window(model, processor, config.max_seconds)
        return model, processor

    def bind(self, processor: Any, augmentation: AugmentationConfig | None = None) -> "Audio":
        return Audio(processor, augmentation or AugmentationConfig(), self)

    # --- pages and checks

    def picture(self, source: str | bytes, side: int) -> "Image.Image":
        return spectrogram(read_sound(source, MEL_RATE, LOOKED_AT), side)

    def sound(self, source: str | bytes) -> bytes:
        """Return the first ten seconds as an MP3 of 16 kHz."""
        import soundfile

        buffer = BytesIO()
        soundfile.write(buffer, read_sound(source, PLAYED_RATE, PLAYED), PLAYED_RATE, format="MP3")
        return buffer.getvalue()

    def raw_features(self, inputs: Sequence[Any]) -> np.ndarray:
        return np.stack([mfcc_statistics(read_sound(source, MEL_RATE, LOOKED_AT)) for source in inputs])

    def pipeline_input(self, source: str, processor: Any) -> np.ndarray:
        return read_sound(source, processor.sampling_rate)

    def usage(self, pair: bool) -> str:
        """Return the name of an array: a file name would need ffmpeg, and another rate torchaudio."""
        return "samples"


def _is_dict_of_samples(value: Any) -> bool:
    return isinstance(value, dict) and value.get("array") is not None and "sampling_rate" in value


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (
        isinstance(value, list) and len(value) > 1000 and isinstance(value[0], float)
    )


def _is_sound(value: Any) -> bool:
    if isinstance(value, dict):
        return _is_dict_of_samples(value) or _is_sound(value.get("bytes") or value.get("path"))
    if isinstance(value, bytes):
        return MAGIC.match(value) is not None
    return isinstance(value, str) and Path(value.strip()).suffix.lower() in SUFFIXES | OTHERS


# --- at work ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Clip:
    """A recording, and how many samples it has at the model's rate."""

    source: str | bytes
    samples: int


class Audio:
    """A feature extractor at work (see `Modality`)."""

    def __init__(self, processor: Any, augmentation: AugmentationConfig, kind: ModalityKind):
        self.processor, self.augmentation, self.kind = processor, augmentation, kind
        self.rate = processor.sampling_rate
        self.truncated_share = 0.0
        self._read: dict[Any, np.ndarray] = {}

    @cached_property
    def window(self) -> float | None:
        return window_of(self.processor)

    @property
    def mixes_lengths(self) -> bool:
        """Whether recordings of different length may share a batch without a trace in their features."""
        return self.window is not None or bool(getattr(self.processor, "return_attention_mask", False))

    def encode(self, frame: pd.DataFrame) -> list[Clip]:
        clips, rates, channels = [], set(), set()
        for source in frame["input"]:
            with opened(source) as file:
                clips.append(Clip(source, math.ceil(file.frames * self.rate / file.samplerate)))
                rates.add(file.samplerate)
                channels.add(file.channels)
        self._report(clips, rates - {self.rate}, channels - {1})
        return clips

    def _report(self, clips: list[Clip], rates: set[int], channels: set[int]) -> None:
        """Log once what is changed: rates, channels, and ends that the window cuts off."""
        if rates:
            log.info("Recordings of %s Hz are resampled to %d Hz.", ", ".join(map(str, sorted(rates))), self.rate)
        if channels:
            log.info("Recordings of %s channels are mixed to one.", ", ".join(map(str, sorted(channels))))
        cut = [self.window is not None and clip.samples > self.window * self.rate for clip in clips]
        self.truncated_share = sum(cut) / max(len(cut), 1)
        if any(cut):
            log.warning(
                "%.1f %% of the recordings (%d of %d) are cut at %.3g s; model.max_seconds sets the limit.",
                100 * self.truncated_share, sum(cut), len(cut), self.window,
            )  # fmt: skip

    def lengths(self, items: Sequence[Clip]) -> list[int]:
        return [1 if self.window else clip.samples for clip in items]

    def collate(self, items: Sequence[Clip], training: bool = False) -> dict[str, "torch.Tensor"]:
        changes = training and self.augmentation.level in ("light", "strong")
        arrays = [self._samples(clip) for clip in items]
        batch = _batch(self.processor, [self._changed(array) if changes else array for array in arrays], self.window)
        return self._masked(batch) if changes else batch

    def occluded(self, item: Clip, most: int) -> tuple[np.ndarray, dict[str, "torch.Tensor"]]:
        """Return the edges (S + 1,) in seconds of at most so many segments, and a batch: the recording, then without each.

        A segment is silenced with ramps of five milliseconds around it, which make no click.
        """
        samples, ramp = self._seen(item), round(0.005 * self.rate)
        count = max(1, min(most, int(len(samples) / (SHORTEST * self.rate))))
        edges, places = np.linspace(0, len(samples), count + 1), np.arange(len(samples))
        gains = [
            np.interp(places, [start - ramp, start, end, end + ramp], [1, 0, 0, 1])
            for start, end in zip(edges[:-1], edges[1:], strict=True)
        ]
        arrays = [samples, *((samples * gain).astype(np.float32) for gain in gains)]
        return edges / self.rate, _batch(self.processor, arrays, self.window)

    def picture(self, item: Clip, side: int) -> "Image.Image":
        """Return the spectrogram of what the model reads of a recording."""
        return spectrogram(resampled(self._seen(item), self.rate, MEL_RATE), side)

    def _seen(self, item: Clip) -> np.ndarray:
        """Return the samples that the window leaves."""
        return self._samples(item)[: None if self.window is None else round(self.window * self.rate)]

    def _samples(self, clip: Clip) -> np.ndarray:
        """Return the samples at the model's rate. A sixteenth of the free memory keeps what was read."""
        if (key := _version(clip.source)) in self._read:
            return self._read[key]
        limit = None if self.window is None else self.window + 0.05
        array = read_sound(clip.source, self.rate, limit)
        if array.nbytes <= self._room:
            self._read[key] = array
            self._room -= array.nbytes
        return array

    @cached_property
    def _room(self) -> int:
        import psutil

        return psutil.virtual_memory().available // 16

    def _changed(self, array: np.ndarray) -> np.ndarray:
        """Light: a shift in time and a gain. Strong: the same with noise at 5 to 20 dB below the signal."""
        import torch

        shift, gain, ratio = torch.rand(3).tolist()
        begin = np.zeros(int(shift * SHIFT * self.rate), np.float32)
        array = np.concatenate([begin, array[: len(array) - len(begin)] if self.window is None else array])
        array = array * 10 ** (GAIN * (2 * gain - 1) / 20)
        if self.augmentation.level == "strong":
            level = array.std() * 10 ** (-(5 + 15 * ratio) / 20)
            array = array + level * torch.randn(len(array)).numpy()
        return array.astype(np.float32)

    def _masked(self, batch: dict[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
        """SpecAugment (arXiv 1904.08779): one span of time, of spectrograms one of frequency too, set to the mean."""
        import torch

        if self.augmentation.level != "strong":
            return batch
        name = self.processor.model_input_names[0]
        for values in batch[name]:
            mean = values.mean()
            for axis in range(values.ndim):
                width, place = torch.rand(2).tolist()
                span = int(0.15 * width * values.shape[axis])
                values.narrow(axis, int(place * (values.shape[axis] - span)), span).fill_(mean)
        return batch

    def plain_batch(self, processor: Any, frame: pd.DataFrame) -> dict[str, "torch.Tensor"]:
        """Return recordings, read whole, as a plain `processor` reads them."""
        arrays = [read_sound(source, processor.sampling_rate) for source in frame["input"]]
        return _batch(processor, arrays, window_of(processor))

    def recorded(self, value: str | bytes) -> str:
        return str(Path(value).absolute()) if isinstance(value, str) and value else ""

    def settings(self) -> dict[str, Any]:
        from importlib.metadata import version

        libraries = {name: version(name) for name in ("scipy", "soundfile")}
        return {"processor": type(self.processor).__name__} | self.processor.to_dict() | libraries

    def skeleton(self, items: Sequence[Clip]) -> dict[str, "torch.Tensor"]:
        return {}  # sound is read by the stem alone; activations of different lengths are not stored


def _version(source: str | bytes) -> Any:
    """Return a key that changes when the file is overwritten."""
    if isinstance(source, bytes):
        return source
    try:
        found = os.stat(source)
    except OSError:
        return source  # reading it says what is wrong
    return source, found.st_mtime_ns, found.st_size


def _batch(processor: Any, arrays: list[np.ndarray], window: float | None) -> dict[str, "torch.Tensor"]:
    """Return the model's inputs; without a window padded to the longest, each normalised by itself."""
    rate = processor.sampling_rate
    if window is not None:
        return dict(processor(arrays, sampling_rate=rate, return_tensors="pt"))
    if getattr(processor, "return_attention_mask", False):
        return dict(processor(arrays, sampling_rate=rate, padding=True, return_tensors="pt"))
    name = processor.model_input_names[0]
    each = [processor([array], sampling_rate=rate, return_tensors="np")[name][0] for array in arrays]
    return dict(processor.pad({name: each}, padding=True, return_attention_mask=False, return_tensors="pt"))
