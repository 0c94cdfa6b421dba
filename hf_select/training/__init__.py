"""Training on selections. Only this room imports Trainer and TRL."""
