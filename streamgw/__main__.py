"""`python -m streamgw` is the `streamgw` command."""

from streamgw.cli import main

main()
