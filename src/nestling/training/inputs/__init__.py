"""What a training begins with: the model to start from, the examples, the loss and the batches."""
