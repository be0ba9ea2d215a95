"""`python -m jaxsharp` is the command `jaxsharp`."""

import sys

from jaxsharp.cli import main

if __name__ == "__main__":
    sys.exit(main())
