"""An honest job: always the same work, about a third of a second of it. Says `held` when the sum is right."""

total = 0
for number in range(3_000_000):
    total = (total * 31 + number) % 1_000_003
print("held" if total == 488_037 else total)
