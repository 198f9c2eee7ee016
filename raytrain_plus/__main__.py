"""`python -m raytrain_plus` is `raytrain-plus`."""

from raytrain_plus.cli import main

main()
