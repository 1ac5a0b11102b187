"""Others' ways to relay, to compare with: each the shortest that does the main job, and nothing else.

`environment` installs what two of them stand on, away from the project's own packages.
"""

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent.parent / "var" / "bench" / ".venv"


def environment() -> str:
    """The path of a Python that has what `requirements.txt` lists, set up once. Ends the program where it cannot be."""
    python, wanted, there = ENVIRONMENT / "bin" / "python", HERE / "requirements.txt", ENVIRONMENT / "requirements.txt"
    if there.exists() and there.read_text() == wanted.read_text():
        return str(python)
    print("installing the peers (once)", file=sys.stderr, flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", ENVIRONMENT], check=True)
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", "-r", wanted]
        subprocess.run(pip, check=True)
    except subprocess.CalledProcessError:
        raise SystemExit("the peers could not be installed; `--only` names the servers to measure") from None
    shutil.copy(wanted, there)
    return str(python)
