"""Rows: parsing of conversations, chat templates, response spans, row files and columns."""
