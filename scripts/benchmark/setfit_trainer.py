"""SetFit's trainer: contrastive tuning of a sentence encoder, then logistic regression. Texts only."""

from contest import answer, parser, read
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--iterations", type=int, default=20, help="pairs a text, as in the paper")
    options = arguments.parse_args()
    train_texts, train_labels = read(options.train)
    test_texts, test_labels = read(options.test)
    model = SetFitModel.from_pretrained(options.weights, labels=sorted(set(train_labels)))
    model.model_body.max_seq_length = options.max_length
    settings = TrainingArguments(
        output_dir=options.output,
        batch_size=16,
        num_epochs=1,
        num_iterations=options.iterations,
        seed=options.seed,
        report_to="none",
        save_strategy="no",
        show_progress_bar=False,
    )
    dataset = Dataset.from_dict({"text": train_texts, "label": train_labels})
    # The default metric is loaded from the Hub, which fails without a network.
    trainer = Trainer(model=model, args=settings, train_dataset=dataset, metric=lambda predicted, labels: 0.0)
    trainer.train()
    answer([str(label) for label in model.predict(test_texts)], test_labels)


if __name__ == "__main__":
    main()
