"""Machines to run on: real clusters, and a lab that stands in for one."""
