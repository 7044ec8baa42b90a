"""The recipes, one file a family: their data, model and loss."""
