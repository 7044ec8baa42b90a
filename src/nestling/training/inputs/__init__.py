"""Inputs of a training: the model to start from, the examples, the loss and the batches."""
