"""Models: loading, saving, and encoding with torch, an export or a cache."""
