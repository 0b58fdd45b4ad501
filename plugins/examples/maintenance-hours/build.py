"""Tests the plugin and builds its component: `python build.py`, with componentize-py installed (`pip install componentize-py`)."""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

MODULE = "maintenance_hours"
WORLD = "retry-policy"

HERE = Path(__file__).resolve().parent


def wit() -> Path:
    """The contract: beside this file, or in the sources that this file is part of."""
    for folder in [HERE / "wit", HERE.parents[2] / "wit"]:
        if (folder / f"{WORLD}.wit").is_file():
            return folder
    sys.exit(f"there is no wit/{WORLD}.wit beside {__file__}: copy wit/ of offpeak's sources there")


def tool() -> str:
    """componentize-py of the Python that runs this, or else of the PATH."""
    beside = Path(sys.executable).parent / "componentize-py"
    found = str(beside) if beside.is_file() else shutil.which("componentize-py")
    return found or sys.exit("componentize-py is not there: pip install componentize-py")


def run(*command: str, **environment: str) -> None:
    done = subprocess.run(command, cwd=HERE, env=os.environ | environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--out", type=Path, default=HERE / "build", help="the folder of everything that is made")
    out = arguments.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    bindings = out / "bindings"
    shutil.rmtree(bindings, ignore_errors=True)
    contract = ["-d", str(wit()), "-w", WORLD]
    # Types and documentation for the editor and the tests; the component gets its own.
    run(tool(), *contract, "bindings", str(bindings))
    run(sys.executable, "-B", "-m", "unittest", "--quiet", f"test_{MODULE}", PYTHONPATH=f"{bindings}:{HERE}")
    component = out / f"{MODULE.replace('_', '-')}.wasm"
    # --stub-wasi: nothing of the system is imported, so that the daemon takes the component.
    run(tool(), *contract, "componentize", MODULE, "--stub-wasi", "-o", str(component))
    print(f"built {component}; look at it with `offpeak plugin check {component}`")


if __name__ == "__main__":
    main()
