"""The nodes of a cluster: telling Ray that one will be taken away, and what is wrong with any."""
