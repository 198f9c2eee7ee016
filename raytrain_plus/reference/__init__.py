"""Reference tasks, small but hard enough to compare recipes, and the recipes found so far."""
