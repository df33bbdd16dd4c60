"""Bringing a whole cloud to life on this machine, and taking it away again."""
