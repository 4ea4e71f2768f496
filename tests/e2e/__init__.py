"""Tests of whole systems; a package, so that the system they share ends with them."""
