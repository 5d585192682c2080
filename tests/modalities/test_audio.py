"""Recordings: files of any rate and number of channels, batches without traces of their neighbours, the fixed window."""

import math

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from hftransfer.core.sound_files import encoded, read_sound, resampled
from hftransfer.core.whisper import plain_names, read_tensors
from hftransfer.data import DataConfig, load_data
from hftransfer.features.passes import batches_of_like_length
from hftransfer.modalities import kind_of
from hftransfer.models.heads import head_of
from hftransfer.models.loading import load_checkpoint
from hftransfer.models.references import ModelConfig
from hftransfer.models.windows import window_of
from hftransfer.tasks import SingleLabel
from tests.support import tiny

KIND = kind_of("audio")


def checkpoint(family, folder, **settings):
    name = str(tiny.AUDIO_FAMILIES[family](folder / family))
    return load_checkpoint(ModelConfig(name=name, **settings), KIND, SingleLabel(("a", "b")))


def sounds(folder, seconds=(0.2, 0.35, 0.6)):
    files = []
    for number, length in enumerate(seconds):
        time = np.arange(int(16000 * length)) / 16000
        files.append(folder / f"{number}.wav")
        soundfile.write(files[-1], 0.5 * np.sin(2 * np.pi * 400 * (number + 1) * time), 16000)
    return pd.DataFrame({"input": [str(file) for file in files]}, dtype=object)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_every_format_rate_and_channel_gives_the_same_tone(tmp_path, suffix, rate):
    time = np.arange(rate) / rate
    tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
    soundfile.write(tmp_path / f"s.{suffix}", np.stack([tone, tone], 1), rate)
    found = read_sound(str(tmp_path / f"s.{suffix}"), 16000)
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(spectrum.argmax() * 16000 / len(found) - 1000) < 2
    assert abs(len(found) - 16000) < 2500  # MP3 frames are whole


def test_resampling_leaves_no_alias():
    """A tone above the new rate's half must vanish, one below must stay."""
    time = np.arange(48000) / 48000
    low, high = (
        resampled(np.sin(2 * np.pi * pitch * time).astype(np.float32), 48000, 16000) for pitch in (1000, 12000)
    )
    assert 0.95 < np.abs(low[1000:-1000]).max() < 1.05 and np.abs(high[1000:-1000]).max() < 0.01


def test_arrays_become_files_and_back():
    samples = np.linspace(-1, 1, 2000, dtype=np.float32)
    assert np.array_equal(read_sound(encoded(samples, 8000)), samples)
    assert np.allclose(read_sound(encoded(np.array([-32768, 16384] * 600, np.int16), 8000))[:2], [-1, 0.5])
    table = pd.DataFrame(
        {"clip": [{"array": samples[i:].tolist(), "sampling_rate": 8000} for i in range(40)], "label": ["a", "b"] * 20}
    )
    data = load_data(DataConfig(), table)
    assert data.modality == "audio" and data.inspections[0].rate == 8000


def test_a_datasets_column_is_read_without_a_decoder(tmp_path):
    import datasets

    tiny.audio_folder(tmp_path / "sounds", per_class=4)
    files = sorted(map(str, (tmp_path / "sounds").rglob("*.wav")))
    labels = [file.split("/")[-2] for file in files]
    dataset = datasets.Dataset.from_dict({"audio": files, "label": labels}).cast_column("audio", datasets.Audio())
    data = load_data(DataConfig(), dataset)
    assert data.modality == "audio" and len(data.frame) == 12


@pytest.mark.parametrize("family", tiny.AUDIO_FAMILIES)
def test_a_prediction_does_not_depend_on_its_batch(tmp_path, family):
    found = checkpoint(family, tmp_path, max_seconds=1)
    modality, model = KIND.bind(found.processor), found.model.eval()
    items = modality.encode(sounds(tmp_path))
    batches = batches_of_like_length(modality.lengths(items), range(3), 8, modality.mixes_lengths)
    together = torch.zeros(3, 2)
    with torch.no_grad():
        for batch in batches:
            together[batch] = model(**modality.collate([items[place] for place in batch])).logits
        alone = torch.cat([model(**modality.collate([item])).logits for item in items])
        plain = torch.cat(
            [model(**modality.plain_batch(found.processor, sounds(tmp_path)[i : i + 1])).logits for i in range(3)]
        )
    assert torch.allclose(together, alone, atol=1e-4) and torch.allclose(alone, plain, atol=1e-5)
    assert len(batches) == (1 if modality.mixes_lengths else 3)


def test_a_file_that_is_written_anew_is_read_anew(tmp_path):
    modality = KIND.bind(checkpoint("whisper", tmp_path, max_seconds=1).processor)
    batches = []
    for value in (0.1, 0.2):
        soundfile.write(tmp_path / "s.wav", np.random.default_rng(0).normal(0, value, 8000), 16000)
        batches.append(modality.collate(modality.encode(pd.DataFrame({"input": [str(tmp_path / "s.wav")]}))))
    assert not torch.equal(*(batch["input_features"] for batch in batches))


@pytest.mark.parametrize("family", ["whisper", "ast"])
def test_a_cut_window_is_saved_with_the_model(tmp_path, family):
    from hftransfer.models.loading import save_model

    found = checkpoint(family, tmp_path, max_seconds=1)
    assert window_of(found.processor) == 1
    save_model(found.model, found.processor, tmp_path / "saved")
    again = KIND.auto_class.from_pretrained(tmp_path / "saved").eval()
    processor = KIND.auto_processor.from_pretrained(tmp_path / "saved")
    batch = KIND.bind(processor).plain_batch(processor, sounds(tmp_path))
    assert torch.equal(again(**batch).logits, found.model.eval()(**batch).logits)


def test_the_window_holds_the_recordings():
    from hftransfer.modalities.inspection import Inspection

    looks = [Inspection("x", seconds=seconds) for seconds in [0.5] * 99 + [9.0]]
    assert KIND.fitted(ModelConfig(name="x"), looks).max_seconds == 1
    assert KIND.fitted(ModelConfig(name="x", max_seconds=4), looks).max_seconds == 4


def test_the_projection_is_part_of_the_head(tmp_path):
    assert head_of(checkpoint("whisper", tmp_path).model) == ("projector", "classifier")
    assert checkpoint("wav2vec2", tmp_path).model.config.classifier_proj_size == 32


@pytest.mark.parametrize("broken", ["empty", "noise", "cut", "short", "nan"])
def test_broken_files_have_a_reason(tmp_path, broken):
    file = tmp_path / "s.wav"
    soundfile.write(file, np.zeros(160 if broken == "short" else 16000) + 0.1, 16000, subtype="FLOAT")
    content = {"empty": b"", "noise": b"no sound at all" * 99, "cut": file.read_bytes()[:20000]}
    if broken in content:
        file.write_bytes(content[broken])
    if broken == "nan":
        soundfile.write(file, np.full(16000, math.nan), 16000, subtype="FLOAT")
    fault = KIND.inspection(str(file)).fault
    assert fault and "\n" not in fault


def test_near_copies_are_found_and_other_recordings_are_not(tmp_path):
    tiny.audio_folder(tmp_path, per_class=8)
    files = sorted(map(str, tmp_path.rglob("*.wav")))
    samples, rate = soundfile.read(files[0])
    soundfile.write(tmp_path / "quiet.flac", resampled((0.5 * samples).astype(np.float32), rate, 22050), 22050)
    frame = pd.DataFrame({"input": [*files, str(tmp_path / "quiet.flac")]}, dtype=object)
    pairs = KIND.near_duplicates(frame, KIND.inspect(frame))
    assert pairs.tolist() == [[0, len(files)]]


def test_augmentation_is_drawn_by_the_seed_and_keeps_the_shape(tmp_path):
    from hftransfer.modalities import AugmentationConfig

    found = checkpoint("whisper", tmp_path, max_seconds=1)
    modality = KIND.bind(found.processor, AugmentationConfig(level="strong"))
    items = modality.encode(sounds(tmp_path))
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(modality.collate(items, training=True)["input_features"])
    plain = modality.collate(items)["input_features"]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]) and drawn[0].shape == plain.shape
    assert not torch.equal(drawn[0], plain)


def test_a_page_plays_and_shows_a_recording(tmp_path):
    file = sounds(tmp_path)["input"][0]
    assert len(KIND.sound(file)) < 20_000 and KIND.picture(file, 240).size == (240, 120)


def test_tensors_of_a_ctranslate2_file():
    """Two tensors written as the format says, and the fused attention taken apart."""

    def record(name, values):
        head = len(name).to_bytes(2, "little") + name + bytes([values.ndim])
        sizes = np.array(values.shape, "<u4").tobytes()
        return head + sizes + bytes([4]) + values.nbytes.to_bytes(4, "little") + values.tobytes()

    fused = np.arange(12, dtype="<f2").reshape(6, 2)
    norm = np.array([1, 2], dtype="<f2")
    content = b"decoder rest" + record(b"encoder/layer_0/self_attention/linear_0/weight\0", fused)
    content += record(b"encoder/layer_norm/gamma\0", norm)
    found = plain_names(read_tensors(content))
    assert found["encoder.layers.0.self_attn.k_proj.weight"].tolist() == [[4, 5], [6, 7]]
    assert found["encoder.layer_norm.weight"].tolist() == [1, 2] and len(found) == 4
