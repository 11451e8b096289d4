"""FUSAR-GPT on the edge: train, export, INT8, bundle, interpret SAR scenes."""

__version__ = "0.1.0"
