"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from servers import run_python

README = Path(__file__).resolve().parents[2] / "README.md"


def test_every_python_block_of_the_readme_runs() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        runner = f"""
import ast, asyncio, inspect
code = compile({block!r}, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
names = {{}}
async def main():
    outcome = eval(code, names)
    if inspect.iscoroutine(outcome):
        await outcome
asyncio.run(main())
"""
        done = run_python(runner)
        assert done.returncode == 0 and not done.stderr, done.stderr
