"""What runs in the coordinator's process."""
