"""`python -m nestling` is the command line."""

from __future__ import annotations

from nestling.cli.app import main

if __name__ == "__main__":
    main()
