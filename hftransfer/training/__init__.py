"""The training loop on transformers.Trainer."""
