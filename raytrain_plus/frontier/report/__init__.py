"""The report of a sweep: what its trials show, and how sure that is."""
