"""Data in an order that no resize or failure can change."""
