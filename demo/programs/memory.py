"""Takes memory until there is none, and touches every page of it."""

hoard = []
while True:
    hoard.append(bytearray(b"x" * (1 << 20)))
