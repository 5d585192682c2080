"""What every other package builds on: errors, settings, files, hashes, words, the starter packages."""
