"""A run of Weft."""

import sys

from parts import ARGUMENTS

from weft.cli.main import main

sys.exit(main(ARGUMENTS))
