"""Object stores and disks: a folder at any URL, atomic files, and one writer per run."""
