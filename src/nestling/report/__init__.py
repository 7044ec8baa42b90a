"""From result tables to tables and pictures for people. Reads results only, never a model."""
