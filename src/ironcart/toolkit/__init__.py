"""The chassis under every service: mechanism only, it knows nothing of orders or money."""
