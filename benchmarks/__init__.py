"""Side-by-side comparisons and measurements; each module is a program of its own."""
