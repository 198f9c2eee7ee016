"""Recipes, and the search for those on the time/quality frontier."""
