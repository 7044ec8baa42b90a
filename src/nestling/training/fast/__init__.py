"""Kernels and settings for speed alone."""
