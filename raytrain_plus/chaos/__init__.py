"""Many random schedules of faults; each run is compared with an undisturbed run."""
