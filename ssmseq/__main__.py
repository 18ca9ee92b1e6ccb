"""``python -m ssmseq`` is the command `ssmseq`; under torchrun it is the way to start one process for each device."""

import sys

from ssmseq.cli import main

sys.exit(main())
