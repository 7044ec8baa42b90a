"""`python -m nestling` is the command line."""

from __future__ import annotations

from nestling.cli import main

if __name__ == "__main__":
    main()
