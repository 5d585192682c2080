"""Hub, model card, export, and the round-trip check."""
