"""`python -I -m sandboxd` is the `sandboxd` command: how the service starts its children, whatever PATH says."""

from sandboxd.cli import main

main(prog_name="sandboxd")
