"""The frozen part computed once: feature store, extraction, feature sources."""
