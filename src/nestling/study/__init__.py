"""The verbs, one file each: what `nestling VERB` does."""
