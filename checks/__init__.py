"""Checks of what we ship and of what we keep: `make security`, `make sbom`."""
