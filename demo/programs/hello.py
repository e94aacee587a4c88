import sys

print("hello from Python", ".".join(map(str, sys.version_info[:2])))
