"""`python -m lutbuilder_agent` is `lutbuilder-agent`."""

import sys

from lutbuilder_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
