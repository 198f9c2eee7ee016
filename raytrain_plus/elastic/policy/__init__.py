"""Pure decisions: which worker computes what, is slow, hangs or is wrong. No I/O, no Ray."""
