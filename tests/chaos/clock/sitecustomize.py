"""Shifts a process's wall clock by the seconds that a file holds; the system's own stays as it is.

Python runs this before all else where its folder is on PYTHONPATH: whoever takes `time.time` later takes this one.
"""

import mmap
import os
import struct
import time
from pathlib import Path

with Path(os.environ["CHAOS_CLOCK"]).open("rb") as file:
    shift = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", shift[:8])[0]
