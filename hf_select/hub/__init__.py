"""A selection on the Hugging Face Hub: pushed with its scores and its card, and loaded again."""
