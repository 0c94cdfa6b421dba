"""Models: loading, batching, generation, and the identity of a model."""
