"""`python -m scloud.agent`."""

import sys

from scloud.agent.main import main

sys.exit(main())
