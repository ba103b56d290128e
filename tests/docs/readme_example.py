"""Run the first Python example of a README, with whatever perdure is installed: `python readme_example.py README.md`."""

import re
import sys
from pathlib import Path

code = re.findall(
    r"^```python\n(.*?)^```", Path(sys.argv[1]).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
)[0]
exec(compile(code, sys.argv[1], "exec"))
