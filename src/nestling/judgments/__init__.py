"""Judgments of (query, document) pairs: reading, cleaning, inspecting and splitting. Knows nothing of torch."""
