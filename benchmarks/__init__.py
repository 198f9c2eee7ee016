"""Side-by-side comparisons and measurements; each module runs by itself."""
