"""Prints without end."""

import sys

while True:
    sys.stdout.write("spam and eggs\n" * 1000)
