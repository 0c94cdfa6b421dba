"""Conversations -> answers by a model in this process or behind a server, and what is made of them."""
