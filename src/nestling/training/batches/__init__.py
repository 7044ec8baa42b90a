"""Batches: tokens, pairs, hard negatives, invented queries."""
