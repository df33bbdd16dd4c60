"""SCloudStack: a private cloud."""

__version__ = "0.1.0"
