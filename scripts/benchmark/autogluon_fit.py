"""AutoGluon MultiModal with the same checkpoint: texts only, since its image models take their weights from a hub."""

import pandas as pd
from autogluon.multimodal import MultiModalPredictor
from contest import answer, parser, read


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--time-limit", type=int, default=600, help="seconds")
    options = arguments.parse_args()
    train_texts, train_labels = read(options.train)
    test_texts, test_labels = read(options.test)
    predictor = MultiModalPredictor(label="label", path=options.output, verbosity=1)
    predictor.fit(
        pd.DataFrame({"input": train_texts, "label": train_labels}),
        hyperparameters={
            "model.names": ["hf_text"],
            "model.hf_text.checkpoint_name": options.weights,
            "model.hf_text.max_text_len": options.max_length,
            "env.num_gpus": 0,
        },
        time_limit=options.time_limit,
        seed=options.seed,
    )
    answer(list(predictor.predict(pd.DataFrame({"input": test_texts}), as_pandas=False)), test_labels)


if __name__ == "__main__":
    main()
