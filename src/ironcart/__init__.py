"""Ironcart takes an online shop's orders and loses none of them."""
