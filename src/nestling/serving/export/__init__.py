"""A model out of torch: the folder that the light runtime reads, and the check that it is the same model."""
