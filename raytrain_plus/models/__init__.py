"""Small models of the reference tasks, written plainly."""
