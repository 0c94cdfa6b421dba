"""Reward learning from demonstrations: RFT, IRFT and SPIN."""
