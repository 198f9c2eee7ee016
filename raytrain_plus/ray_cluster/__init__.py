"""The Ray cluster: joining it, asking its head, and all that uses Ray beyond its public API."""
