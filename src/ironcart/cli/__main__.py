"""`python -m ironcart.cli`: the same as `ironcart`."""

from ironcart.cli import main

main()
