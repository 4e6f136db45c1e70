"""Everything goes wrong on purpose: kills, two writers, full disks, little memory, flipped bytes. `__main__` says how.

`processes` runs one worker and stops it, `jobs` says what is tortured, `stress` and `flips` torture it and look what is
left, and `__main__` prints one table.
"""
