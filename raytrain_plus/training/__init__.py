"""One training step, the same bits on any number of workers."""
