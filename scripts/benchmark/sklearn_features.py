"""Frozen features and scikit-learn's logistic regression, as one would write it by hand.

Images: the pooled features that the head reads. Texts: the mean of the tokens. C by cross-validation.
"""

import time

import numpy as np
import torch
from contest import answer, parser, read
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def image_features(paths: list[str], options) -> np.ndarray:
    from PIL import Image

    model = AutoModel.from_pretrained(options.weights).to(DEVICE).eval()
    processor = AutoImageProcessor.from_pretrained(options.weights)
    config = getattr(processor, "data_config", None) or {"mean": processor.image_mean, "std": processor.image_std}
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    size = (options.image_size, options.image_size)
    features = []
    with torch.inference_mode():
        for begin in range(0, len(paths), 16):
            images = [Image.open(path).convert("RGB").resize(size) for path in paths[begin : begin + 16]]
            pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
            output = model(((pixels - mean) / std).to(DEVICE))
            pooled = output.pooler_output if output.pooler_output is not None else output.last_hidden_state[:, 0]
            features.append(pooled.flatten(1))
    return torch.cat(features).cpu().numpy()


def text_features(texts: list[str], options) -> np.ndarray:
    model = AutoModel.from_pretrained(options.weights).to(DEVICE).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    features = []
    with torch.inference_mode():
        for begin in range(0, len(texts), 32):
            batch = tokenizer(
                texts[begin : begin + 32],
                padding=True,
                truncation=True,
                max_length=options.max_length,
                return_tensors="pt",
            ).to(DEVICE)
            mask = batch["attention_mask"][..., None]
            features.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(features).cpu().numpy()


def main() -> None:
    options = parser(__doc__).parse_args()
    train_inputs, train_labels = read(options.train)
    test_inputs, test_labels = read(options.test)
    extract = image_features if options.modality == "image" else text_features
    begin = time.perf_counter()
    features = extract(train_inputs + test_inputs, options)
    middle = time.perf_counter()
    search = LogisticRegressionCV(Cs=10, cv=5, max_iter=2000, scoring="neg_log_loss", use_legacy_attributes=False)
    classifier = make_pipeline(StandardScaler(), search)
    classifier.fit(features[: len(train_labels)], train_labels)
    predicted = classifier.predict(features[len(train_labels) :])
    answer(list(predicted), test_labels, forward=middle - begin, search=time.perf_counter() - middle)


if __name__ == "__main__":
    main()
