"""`python -m haloae.cli`."""

import sys

from haloae.cli import main

sys.exit(main())
