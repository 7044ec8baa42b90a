"""Steps that follow a training, each kept only where dev is not lower for it."""
