"""Who works for a run: asking for workers, taking them in, finding them again, letting them go."""
