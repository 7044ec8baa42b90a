"""The search of training settings."""
