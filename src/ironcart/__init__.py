"""Ironcart takes an online shop's orders and loses none of them."""

__version__ = "0.1.0"
