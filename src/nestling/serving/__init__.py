"""How a model leaves the workshop: exported for a light runtime that needs neither torch nor transformers."""
