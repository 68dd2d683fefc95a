"""`python -m unfog` is the command `unfog`."""

import sys

from unfog.cli import main

sys.exit(main())
