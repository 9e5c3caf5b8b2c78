"""Weights that other implementations saved, loaded into this package's networks."""

from .loading import load_checkpoint
from .report import LoadReport

__all__ = ["LoadReport", "load_checkpoint"]
