"""Tiny runs: the configuration of one for every strategy and kind of data, and runs that all tests read together."""

import html
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from hftransfer.config import RunConfig, checked
from tests.support import tiny

KINDS = {
    "image": ("timm-resnet", None),
    "image-multi": ("vit", "multi_label"),
    "image-regression": ("convnext", "regression"),
    "audio": ("whisper", None),
    "audio-multi": ("wav2vec2", "multi_label"),
    "audio-regression": ("ast", "regression"),
    "text": ("bert", "single_label"),
    "text-multi": ("distilbert", "multi_label"),
    "text-regression": ("roberta", "regression"),
    "pair": ("bert", "single_label"),
    "tokens": ("bert", "tokens"),
    "masks": ("convnext", "masks"),
}


def image_table(folder: Path, task: str) -> Path:
    """Image paths with several labels, or a number, that their colour tells."""
    table = folder / f"{task}.csv"
    if table.exists():
        return table
    tiny.image_folder(folder / "images", per_class=16)
    rows = []
    for index, label in enumerate(("red", "green", "blue")):
        for file in sorted((folder / "images" / label).glob("*.png")):
            value = f"{label}|warm" if label == "red" else label
            rows.append({"path": f"images/{label}/{file.name}", "label": value if task == "multi_label" else index / 2})
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def audio_table(folder: Path, task: str) -> Path:
    """Paths of recordings with several labels, or a number, that their pitch tells."""
    table = folder / f"{task}.csv"
    if table.exists():
        return table
    tiny.audio_folder(folder / "sounds")
    rows = []
    for index, label in enumerate(tiny.PITCHES):
        for file in sorted((folder / "sounds" / label).glob("*.wav")):
            value = f"{label}|deep" if label == "low" else label
            rows.append({"path": f"sounds/{label}/{file.name}", "label": value if task == "multi_label" else index / 2})
    pd.DataFrame(rows).to_csv(table, index=False)
    return table


def data_of(kind: str, folder: Path) -> dict:
    """The `data` part of a configuration for a kind of the matrix. What is there already is not written again."""
    _, task = KINDS[kind]
    if kind == "image":
        shapes = folder / "shapes"
        return {"train": str(shapes if shapes.exists() else tiny.image_folder(shapes, per_class=16))}
    if kind == "audio":
        sounds = folder / "sounds"
        return {"train": str(sounds if sounds.exists() else tiny.audio_folder(sounds))}
    if kind.startswith("audio"):
        columns = {"input": "path", "label": "label", "task": task}
        return {"train": str(audio_table(folder, task))} | columns | _separator(task)
    if kind.startswith("image"):
        columns = {"input": "path", "label": "label", "task": task}
        return {"train": str(image_table(folder, task))} | columns | _separator(task)
    if kind == "masks":
        scenes = folder / "scenes"
        return {"train": str(scenes if scenes.exists() else tiny.mask_folder(scenes))}
    if kind == "tokens":
        file = folder / "entities.conll"
        return {"train": str(file if file.exists() else tiny.token_file(file))}
    table = folder / f"{kind}.csv"
    if not table.exists():
        tiny.text_table(table, task, pairs=kind == "pair", rows=60)
    columns = {"input": ["first", "second"] if kind == "pair" else "text", "label": "label", "task": task}
    return {"train": str(table)} | columns | _separator(task)


def _separator(task: str | None) -> dict:
    return {"separator": "|"} if task == "multi_label" else {}


def configuration(strategy: str, kind: str, folder: Path, **training: object) -> RunConfig:
    family, _ = KINDS[kind]
    makers = tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES | tiny.AUDIO_FAMILIES
    model = folder / family
    if not model.exists():
        makers[family](model)
    training = {"max_steps": 4, "per_device_train_batch_size": 8, "evaluations": 2, "bf16": False} | training
    # The linear probe on the features of a tiny random network has weights of hundreds, which would magnify the rounding of
    # the merge of adapters; beginnings with the probe's head are compared in test_train.
    options = {"frozen": {"top": 1}, "gradual": {"open_all_by": 0.7}, "lora": {"head_init": "random"}}.get(strategy, {})
    if strategy == "gradual":
        training |= {
            "evaluations": 1
        }  # an earlier checkpoint could be the best, from before all layer groups were open
    return checked(
        {
            "data": data_of(kind, folder),
            "model": {"name": str(model)} | ({"image_size": 64} if kind == "masks" else {}),
            "strategy": {"type": strategy} | options,
            "training": training,
            # Cross-validation of few examples is the default: it has tests of its own, and costs every run some seconds.
            "evaluation": {"resamples": 100, "explanations": False, "folds": 0},
            "output": str(folder / f"{kind}-{strategy}"),
        }
    )


def empty_plot(figure: object, title: str) -> str:
    """Stand for a drawn figure: drawing is most of the time that the pages of a tiny run take."""
    return f'<svg role="img" aria-label="{html.escape(title)}"></svg>'


class SharedRuns:
    """Complete runs, each trained by the first test that asks for it, in whichever process. Copy one to write in it."""

    def __init__(self, root: Path, write_pages: Callable[[Path], None]):
        self.root, self.write_pages = root, write_pages

    def __call__(self, strategy: str, kind: str, pages: bool = True) -> Path:
        """Return the folder of a run, with or without its report and card."""
        output = self.root / kind / f"{kind}-{strategy}"
        self._once(kind, output.with_name(f"{output.name}.done"), self._train, strategy, kind, output)
        if pages:
            self._once(kind, output.with_name(f"{output.name}.pages"), self.write_pages, output)
        return output

    def _train(self, strategy: str, kind: str, output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        train(configuration(strategy, kind, output.parent))

    def _once(self, kind: str, done: Path, step: Callable, *arguments: object) -> None:
        if done.exists():  # seen without the lock, which another run of the kind may hold
            return
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f"{kind}.lock"):
            if not done.exists():
                step(*arguments)
                done.touch()


def train(config: RunConfig) -> None:
    """Keep what was trained: four steps from a solved head gain nothing, and would be undone."""
    from hftransfer.train import run
    from hftransfer.training import trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "_undo_a_loss", lambda *_: None)
        run(config)
