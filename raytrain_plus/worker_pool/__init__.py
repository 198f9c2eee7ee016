"""Warm workers that a sweep shares between its trials."""
