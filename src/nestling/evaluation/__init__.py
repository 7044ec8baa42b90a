"""Evaluation of retrieval: qrels, measures, significance, the grid, and the tables of results."""
