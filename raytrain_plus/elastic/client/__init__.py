"""What runs in the driver's process, or on a laptop."""
