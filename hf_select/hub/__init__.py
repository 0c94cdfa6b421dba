"""Selections, generated rows, mixtures and indexes on the Hugging Face Hub: pushed with their cards, loaded again."""
