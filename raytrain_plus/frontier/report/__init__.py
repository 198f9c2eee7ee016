"""The report of a sweep: what its trials show, with intervals."""
