"""The nodes of a cluster: draining one that will be preempted, and diagnosing all of them."""
