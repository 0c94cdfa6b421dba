"""A causal LM as a measuring device, and the runner that scores a dataset with it."""
