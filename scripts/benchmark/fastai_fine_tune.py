"""fastai's `fine_tune` with its default augmentation: images only."""

import json
from pathlib import Path

import torch
from contest import answer, parser, read
from fastai.vision.all import (
    CategoryBlock,
    ColReader,
    DataBlock,
    ImageBlock,
    Normalize,
    RandomSplitter,
    Resize,
    aug_transforms,
    set_seed,
    vision_learner,
)
from safetensors.torch import load_file


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--epochs", type=int, default=3)
    options = arguments.parse_args()
    import pandas as pd

    set_seed(options.seed, reproducible=True)
    frame = pd.read_csv(options.train, dtype=str, keep_default_na=False)
    config = json.loads((Path(options.weights) / "config.json").read_text())
    statistics = config["pretrained_cfg"]
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_x=ColReader("input"),
        get_y=ColReader("label"),
        splitter=RandomSplitter(0.15, seed=options.seed),
        item_tfms=Resize(options.image_size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(statistics["mean"], statistics["std"])],
    )
    loaders = block.dataloaders(frame, bs=32, num_workers=0, path=options.output)
    learner = vision_learner(loaders, config["architecture"], pretrained=False)
    load_body(learner.model[0], Path(options.weights) / "model.safetensors")
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(options.epochs)
        test_inputs, test_labels = read(options.test)
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(pd.DataFrame({"input": test_inputs})))
    predicted = [loaders.vocab[index] for index in probabilities.argmax(1)]
    learner.export(Path(options.output).resolve() / "export.pkl")
    answer(predicted, test_labels)


def load_body(body: torch.nn.Module, path: Path) -> None:
    """Load the same pretrained weights as everybody into the body that fastai made."""
    weights = {name.removeprefix("timm_model."): value for name, value in load_file(path).items()}
    inner = getattr(body, "model", body)
    missing = inner.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise SystemExit(f"The checkpoint lacks {missing[:3]}")


if __name__ == "__main__":
    main()
