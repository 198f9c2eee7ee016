"""Who is gone, hangs, is slow, or computes what is wrong; and what follows from it."""
