"""What goes in. A modality is one file here, registered below, and one row in the behaviour matrix of the tests."""

from hftransfer.modalities.audio import AudioKind
from hftransfer.modalities.base import MODALITIES, Modality, ModalityKind, by_preference, first_kind, kind_of, register
from hftransfer.modalities.image import AugmentationConfig, ImageKind
from hftransfer.modalities.text import TextKind

__all__ = [
    "MODALITIES", "AugmentationConfig", "Modality", "ModalityKind", "by_preference", "first_kind", "kind_of", "register",
]  # fmt: skip

register(TextKind())  # takes what no other kind recognises
register(ImageKind())
register(AudioKind())
