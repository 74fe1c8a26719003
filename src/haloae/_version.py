"""The version, alone: everything may ask for it and it asks for nothing."""

__version__ = "0.1.0"
