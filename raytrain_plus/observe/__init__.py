"""What a run tells: its journal, and what reads it."""
