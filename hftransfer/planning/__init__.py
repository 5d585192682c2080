"""What to do next: which strategy, which checkpoint, which labels."""
