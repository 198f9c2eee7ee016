"""Pure decisions: who computes what, who is slow, hangs or is wrong. No I/O, no clock, no Ray."""
