"""Reference tasks: small, real, hard enough to tell recipes apart, and the recipes found so far."""
