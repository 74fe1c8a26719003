"""`python -m haloae`, where the command itself is not on the path."""

import sys

from haloae.cli import main

sys.exit(main())
