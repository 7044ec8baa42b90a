"""Distillation from a cross-encoder."""
