"""From judgments to a fine-tuned SentenceTransformer folder."""
