"""ADClick Edge: an inspection runtime for production lines.

The package root imports nothing heavy; take what you need from its submodules.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
