"""Weights on disk: storing, verifying, loading, and the card that describes them."""
