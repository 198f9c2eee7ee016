"""The command line: `raytrain-plus`, also `python -m raytrain_plus`."""

from raytrain_plus.cli.commands import app as app
from raytrain_plus.cli.commands import main as main
