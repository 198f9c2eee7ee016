"""How other processes see that a process lives, hangs or has crashed."""
