"""The losses, and what they are made of."""
