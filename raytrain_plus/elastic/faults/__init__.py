"""Disturbances on purpose."""
