"""Engines that run a model's transformer."""
