"""How well a model retrieves: embedding, exact top-k, measures, and the table of results."""
