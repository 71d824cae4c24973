"""Times a command from its start to its end, in seconds."""

from __future__ import annotations

import json
import subprocess
import sys
import time

argv = json.loads(sys.argv[1])
subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)  # fills the caches
started = time.perf_counter()
subprocess.run(argv, stdout=subprocess.DEVNULL, check=True)
print(json.dumps({"wall": time.perf_counter() - started}))
