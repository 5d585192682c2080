"""Run folders: made, read, and the predictions they hold."""
