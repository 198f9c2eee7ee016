"""Many random schedules of faults, each held against the run to which nothing happens."""
