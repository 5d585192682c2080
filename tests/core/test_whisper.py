"""starter/whisper-base against a reference that reads the package's file and computes the encoder by its own layout."""

import math
import struct

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

from hftransfer.core import starter

HEADS = 8
FIRST = b"encoder/conv1/bias\0"  # the first tensor of the encoder in a file that is sorted by name


def tensors_in_order(content):
    """Read one tensor after the other (length, name, rank, sizes, type, bytes, values) to the end of the encoder."""
    place, found = content.index(FIRST) - 2, {}
    while True:
        (length,) = struct.unpack_from("<H", content, place)
        name = content[place + 2 : place + 2 + length]
        if not name.startswith(b"encoder/") or not name.endswith(b"\0"):
            return found
        place += 2 + length
        rank = content[place]
        sizes = struct.unpack_from(f"<{rank}I", content, place + 1)
        kind, size = struct.unpack_from("<BI", content, place + 1 + 4 * rank)
        place += 6 + 4 * rank
        if kind == 4:  # float16; the others are settings such as the number of heads
            values = np.frombuffer(content, "<f2", size // 2, place).reshape(sizes).astype(np.float32)
            found[name[8:-1].decode()] = torch.from_numpy(values)
        place += size


def linear(tensors, name, values):
    return values @ tensors[f"{name}/weight"].T + tensors[f"{name}/bias"]


def norm(tensors, name, values):
    return functional.layer_norm(values, values.shape[-1:], tensors[f"{name}/gamma"], tensors[f"{name}/beta"])


def attention(tensors, name, values):
    """Queries, keys and values are one product; (T, D) -> (T, D)."""
    fused = linear(tensors, f"{name}/linear_0", norm(tensors, f"{name}/layer_norm", values))
    query, key, value = fused.view(len(values), 3, HEADS, -1).permute(1, 2, 0, 3)
    weights = (query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])).softmax(-1)
    return linear(tensors, f"{name}/linear_1", (weights @ value).permute(1, 0, 2).reshape(len(values), -1))


def reference(tensors, features):
    """Return the hidden states before each layer and after the last norm (Radford et al. 2022, section 2.2)."""
    values = functional.conv1d(features, tensors["conv1/weight"], tensors["conv1/bias"], padding=1)
    values = functional.conv1d(
        functional.gelu(values), tensors["conv2/weight"], tensors["conv2/bias"], stride=2, padding=1
    )
    values = functional.gelu(values)[0].T + tensors["position_encodings/encodings"]
    states = []
    for layer in range(6):
        states.append(values)
        values = values + attention(tensors, f"layer_{layer}/self_attention", values)
        hidden = linear(tensors, f"layer_{layer}/ffn/linear_0", norm(tensors, f"layer_{layer}/ffn/layer_norm", values))
        values = values + linear(tensors, f"layer_{layer}/ffn/linear_1", functional.gelu(hidden))
    return [*states, norm(tensors, "layer_norm", values)]


def clip(rate=16000):
    """Three seconds of a voice-like sound: harmonics of a gliding pitch in two formants, and a pause."""
    time = np.arange(3 * rate) / rate
    phase = 2 * np.pi * np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.7 * time)) / rate
    formants = [
        math.exp(-(((120 * k - 600) / 250) ** 2)) + 0.5 * math.exp(-(((120 * k - 1900) / 300) ** 2))
        for k in range(1, 30)
    ]
    voice = sum(weight * np.sin(k * phase) for k, weight in enumerate(formants, 1))
    return (0.1 * voice * (np.abs(time - 1.5) > 0.2)).astype(np.float32)


@pytest.fixture(scope="module")
def tensors():
    package, pattern, _ = starter.CONVERTED["starter/whisper-base"]
    return tensors_in_order(starter._files(package, pattern, "starter/whisper-base")[0].read_bytes())


@pytest.mark.real
def test_the_converted_encoder_computes_what_the_package_holds(tensors):
    folder = starter.checkpoint("starter/whisper-base").path
    encoder = transformers.WhisperForAudioClassification.from_pretrained(folder).encoder.eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = extractor([clip()], sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        found = encoder(features, output_hidden_states=True).hidden_states
        expected = reference(tensors, features)
    assert len(found) == len(expected) == 7
    for ours, theirs in zip(found, expected, strict=True):
        error = (ours[0] - theirs).abs().max() / theirs.abs().max()
        print(f"{error:.1e} of {theirs.abs().max():.3g}")
        assert error < 1e-4


@pytest.mark.real
def test_the_weights_are_those_of_whisper(tensors):
    """Facts of the paper and of OpenAI's code, which no error of reading or naming would leave true."""
    times = np.exp(-math.log(10000) / 255 * np.arange(256))
    angles = np.arange(1500)[:, None] * times
    sinusoids = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    assert np.abs(tensors["position_encodings/encodings"].numpy() - sinusoids).max() < 1e-3  # in float16
    for layer in range(6):
        query, key, value = tensors[f"layer_{layer}/self_attention/linear_0/bias"].split(512)
        assert not key.any() and query.any() and value.any()  # keys have no bias
    assert (
        sum(values.numel() for values in tensors.values()) == 20_590_592 + 6 * 512
    )  # as in transformers, and the key biases
