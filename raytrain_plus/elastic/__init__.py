"""A group of workers that shrinks and grows while it trains."""
