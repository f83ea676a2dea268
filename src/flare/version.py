"""The version, for the package and for what identify tells."""

__version__ = "0.1.0"
