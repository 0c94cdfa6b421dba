"""Rows: conversations in any layout, their text under a chat template, files, columns."""
