"""Several hosts on one machine, whose power can be cut and whose cables can be pulled."""
