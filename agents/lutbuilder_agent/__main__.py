"""Where `lutbuilder-agent` starts, which `python -m lutbuilder_agent` is, too."""

import sys

from lutbuilder_agent.stopping import CTRL_C_STATUS, keep_ctrl_c_out_of_imports


def main() -> int:
    """Run the command line and return the exit status; Ctrl-C before that has begun gives no traceback either."""
    try:
        keep_ctrl_c_out_of_imports()
        from lutbuilder_agent import cli

        return cli.main()
    except KeyboardInterrupt:
        return CTRL_C_STATUS


if __name__ == "__main__":
    sys.exit(main())
