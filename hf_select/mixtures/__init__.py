"""Sources and counts -> one dataset."""
