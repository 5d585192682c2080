"""Opening recordings: every file that libsndfile reads, as samples of one channel, or an error that names the file."""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hftransfer.core.errors import UnreadableInput, UserError
from hftransfer.core.input_files import fault_of, require_file, shown_name

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(".wav .flac .ogg .oga .opus .mp3 .aif .aiff .aifc .au .caf .w64".split())
OTHERS = frozenset(".m4a .aac .wma .mp4 .webm .amr .3gp".split())  # sound that libsndfile cannot read
# RIFF also begins WebP and AVI; the four letters after its size tell.
MAGIC = re.compile(rb"RIFF....WAVE|fLaC|OggS|ID3|\xff[\xf2\xf3\xfa\xfb]|FORM....AIF|\.snd|caff", re.DOTALL)
THUMBNAIL = 32
MEL_RATE, FFT, HOP, MELS = 16000, 512, 160, 64


class UnreadableAudio(UnreadableInput):
    """A recording that cannot be decoded; the message names the file and the reason."""

    noun = "recording"


# --- reading -----------------------------------------------------------------------------------------------------------


@contextmanager
def opened(source: str | bytes) -> Iterator[Any]:
    """Return a `soundfile.SoundFile` of a path or of encoded bytes. Raises `UnreadableAudio`."""
    import soundfile

    try:
        if not isinstance(source, bytes):
            require_file(source)
        elif not source:
            raise OSError("it holds no bytes")
        with soundfile.SoundFile(BytesIO(source) if isinstance(source, bytes) else source) as file:
            yield file
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        raise UnreadableAudio(shown_name(source), _reason(error)) from error


def read_content(source: str | bytes) -> bytes:
    """Return the bytes of a recording, decoded or not. Raises `UnreadableAudio`."""
    if isinstance(source, bytes):
        return source
    try:
        require_file(source)
        return Path(source).read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        raise UnreadableAudio(shown_name(source), _reason(error)) from error


def _reason(error: Exception) -> str:
    if type(error).__name__ == "LibsndfileError":
        return f"its content is no sound that libsndfile knows ({error.error_string.strip().rstrip('.')})"
    return fault_of(error)


def read_sound(source: str | bytes, rate: int | None = None, seconds: float | None = None) -> np.ndarray:
    """Return the first `seconds` of a recording at `rate` Hz (None: its own), channels averaged, (samples,) float32.

    Raises `UnreadableAudio` where it cannot be decoded, holds no samples, or values that are not finite.
    """
    with opened(source) as file:
        frames = -1 if seconds is None else math.ceil(seconds * file.samplerate)
        mono = file.read(frames, dtype="float32", always_2d=True).mean(1)
        if not len(mono):
            raise OSError("it holds no samples")
        if not np.isfinite(mono).all():
            raise OSError("it holds values that are not finite")
        return resampled(mono, file.samplerate, rate or file.samplerate)


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """Return samples at another rate, by a polyphase filter with a Kaiser window (the `resample_poly` of SciPy)."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    divisor = math.gcd(rate, wanted)
    found = resample_poly(samples, wanted // divisor, rate // divisor, window=("kaiser", 8.0))
    return found.astype(np.float32)


def encoded(samples: Any, rate: int) -> bytes:
    """Return an array of samples, (n,), (channels, n) or (n, channels), as a WAV file of 32-bit floats.

    Raises `UserError` for another shape. Integers count from -2^(bits - 1) to 2^(bits - 1).
    """
    import soundfile

    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[0] < array.shape[1]:
        array = array.T
    if array.ndim not in (1, 2) or array.dtype.kind not in "iuf":
        raise UserError(f"A recording is an array of (samples,) numbers, found {array.shape} {array.dtype}.")
    if array.dtype.kind in "iu":
        array = array / float(2 ** (8 * array.dtype.itemsize - 1))
    buffer = BytesIO()
    soundfile.write(buffer, array.astype(np.float32), int(rate), format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def is_cut_off(content: bytes) -> bool:
    """Whether a WAV file is shorter than its header says. Streams that left their size open do not count."""
    if content[:4] != b"RIFF" or len(content) < 12:
        return False
    declared = int.from_bytes(content[4:8], "little")
    return 0 < declared < 2**32 - 2**16 and declared + 8 > len(content) + 1


# --- pictures of sound --------------------------------------------------------------------------------------------------


@cache
def _mel_filters() -> np.ndarray:
    """Triangular filters (MELS, FFT / 2 + 1), evenly spaced on the mel scale (O'Shaughnessy 1987) from 0 to 8 kHz."""
    top = 2595 * np.log10(1 + MEL_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(FFT, 1 / MEL_RATE)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0, np.minimum(rising, falling))


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the log-mel spectrogram (MELS, frames) in decibels of samples at 16 kHz, at most 80 below the loudest value."""
    padded = np.pad(samples.astype(np.float64), (0, max(0, FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP] * np.hanning(FFT)
    power = _mel_filters() @ (np.abs(np.fft.rfft(frames)) ** 2).T
    decibels = 10 * np.log10(np.maximum(power, 1e-10))
    return np.maximum(decibels, decibels.max() - 80)


def _grey(samples: np.ndarray) -> np.ndarray:
    """Return the spectrogram as uint8 (MELS, frames), low frequencies at the bottom."""
    decibels = log_mel(samples)[::-1]
    return np.round(255 * (decibels - decibels.min()) / max(np.ptp(decibels), 1e-6)).astype(np.uint8)


def thumbnail(samples: np.ndarray) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(_grey(samples)).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def spectrogram(samples: np.ndarray, side: int = 240) -> "Image.Image":
    """Return a picture of samples at 16 kHz: time from left to right, dark is loud."""
    from PIL import Image

    return Image.fromarray(255 - _grey(samples)).resize((side, side // 2), Image.Resampling.BILINEAR).convert("RGB")


def mfcc_statistics(samples: np.ndarray, coefficients: int = 20) -> np.ndarray:
    """Mean, deviation and mean change of MFCCs (Davis and Mermelstein 1980) over the time, (3 * coefficients,)."""
    from scipy.fft import dct

    found = dct(log_mel(samples), axis=0, norm="ortho")[:coefficients]
    change = np.abs(np.diff(found, axis=1)).mean(1) if found.shape[1] > 1 else np.zeros(len(found))
    return np.concatenate([found.mean(1), found.std(1), change]).astype(np.float32)
