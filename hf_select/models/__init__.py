"""A causal LM as a measuring device: loading, batching, what identifies it."""
