"""Where `lutbuilder` starts: the rest is imported when Ctrl-C gives no traceback any more."""

import sys

from lutbuilder_agent.stopping import CTRL_C_STATUS, keep_ctrl_c_out_of_imports


def main() -> None:
    """Run the program and end the process with the exit status of its errors."""
    try:
        keep_ctrl_c_out_of_imports()
        from lutbuilder.cli.main import app

        app()
    except KeyboardInterrupt:
        sys.exit(CTRL_C_STATUS)
