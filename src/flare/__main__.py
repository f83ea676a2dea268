"""`python -m flare` is the flare command."""

import sys

from .cli import main

sys.exit(main())
