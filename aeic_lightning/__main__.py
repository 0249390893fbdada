"""`python -m aeic_lightning COMMAND ...`"""

import sys

from aeic_lightning.cli import main

sys.exit(main())
