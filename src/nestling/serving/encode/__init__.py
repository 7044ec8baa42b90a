"""A large catalogue to vectors, partition by partition, here or on a Ray cluster."""
