"""What is kept of a run: its checkpoints, its journal, its accounts and its numbers."""
