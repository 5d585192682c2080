"""Plain `transformers.Trainer` as its documentation shows it: all layers, or the backbone frozen."""

import numpy as np
import torch
from contest import answer, classes, parser, read
from torch.utils.data import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    DefaultDataCollator,
    Trainer,
    TrainingArguments,
    set_seed,
)


class Images(Dataset):
    """Opened, resized and normalised at every visit; `augment` adds a light random crop and flip."""

    def __init__(self, paths: list[str], labels: list[int], processor, size: int, augment: bool):
        from torchvision.transforms import v2

        random = [v2.RandomResizedCrop(size, scale=(0.5, 1)), v2.RandomHorizontalFlip()]
        to_tensor = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        mean, std = statistics(processor)
        start = random if augment else [v2.Resize((size, size))]
        self.transform = v2.Compose([*start, *to_tensor, v2.Normalize(mean, std)])
        self.paths, self.labels = paths, labels

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        from PIL import Image

        image = Image.open(self.paths[index]).convert("RGB")
        return {"pixel_values": self.transform(image), "labels": self.labels[index]}


def statistics(processor) -> tuple:
    config = getattr(processor, "data_config", None) or {"mean": processor.image_mean, "std": processor.image_std}
    return config["mean"], config["std"]


class Texts(Dataset):
    def __init__(self, texts: list[str], labels: list[int], tokenizer, max_length: int):
        self.encoded = tokenizer(texts, truncation=True, max_length=max_length)
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {name: values[index] for name, values in self.encoded.items()} | {"labels": self.labels[index]}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--frozen", action="store_true")
    arguments.add_argument("--epochs", type=float, default=3)
    arguments.add_argument("--batch", type=int, default=8)
    arguments.add_argument("--rate", type=float, default=5e-5)
    arguments.add_argument("--augment", action="store_true")
    options = arguments.parse_args()
    set_seed(options.seed)
    train_inputs, train_labels = read(options.train)
    test_inputs, test_labels = read(options.test)
    names = classes(train_labels)
    numbers = {name: number for number, name in enumerate(names)}
    is_image = options.modality == "image"
    model_class = AutoModelForImageClassification if is_image else AutoModelForSequenceClassification
    model = model_class.from_pretrained(options.weights, num_labels=len(names), ignore_mismatched_sizes=True)
    processor = (AutoImageProcessor if is_image else AutoTokenizer).from_pretrained(options.weights)

    def dataset(inputs: list[str], labels: list[str], train: bool) -> Dataset:
        targets = [numbers.get(label, 0) for label in labels]
        if is_image:
            return Images(inputs, targets, processor, options.image_size, train and options.augment)
        return Texts(inputs, targets, processor, options.max_length)

    if options.frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = any(part in name for part in ("classifier", "timm_model.head", "score"))
    settings = TrainingArguments(
        output_dir=options.output,
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=32,
        learning_rate=options.rate,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=options.seed,
    )
    collator = DefaultDataCollator() if is_image else DataCollatorWithPadding(processor)
    train, test = dataset(train_inputs, train_labels, True), dataset(test_inputs, test_labels, False)
    trainer = Trainer(model=model, args=settings, train_dataset=train, data_collator=collator)
    trained = trainer.train()
    logits = trainer.predict(test).predictions
    model.save_pretrained(f"{options.output}/model")
    predicted = [names[index] for index in np.asarray(logits).argmax(-1)]
    answer(predicted, test_labels, training=trained.metrics["train_runtime"])


if __name__ == "__main__":
    main()
