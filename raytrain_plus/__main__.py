"""Runs `raytrain-plus` as `python -m raytrain_plus`."""

from raytrain_plus.cli import main

main()
