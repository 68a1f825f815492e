#!/usr/bin/env python3
"""The quick start of README.md, run as it stands there: every command must succeed and say what the README says.

Over https with a tenth of the keys: what differs there is the way to the service, which no key takes.
"""
import json
import os
import pathlib
import re
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
ADMIN = pathlib.Path(os.environ["CACHEKEEP_ADMIN"])
LIMIT_SECONDS = 300


def main():
    readme = (REPOSITORY / "README.md").read_text()
    block = re.search(r"^```sh quick-start\n(.*?)^```", readme, re.M | re.S)
    if not block:
        print("README.md has no block marked `sh quick-start`")
        print("0 passed, 1 failed")
        return 1
    keys, lines = "1000000", block[1]
    if json.loads(ADMIN.read_text())["endpoint"].startswith("https"):
        keys = "100000"
        lines = lines.replace("--keys 1000000", f"--keys {keys}")
    environment = dict(os.environ, CACHEKEEP_DATA_DIR=str(ADMIN.parent))
    target = os.environ.get("CARGO_TARGET_DIR")
    if target:
        environment["PATH"] = f"{target}/release:{environment['PATH']}"
    began = time.monotonic()
    run = subprocess.run(["bash", "-euxo", "pipefail", "-c", lines], cwd=REPOSITORY, env=environment, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * LIMIT_SECONDS, check=False)
    took = time.monotonic() - began
    told = run.stdout
    checks = {
        "every command succeeds": run.returncode == 0,
        f"{keys} keys are loaded": f"{keys} keys" in told,
        "the engine's digest is that of the backup": "equal, says the engine" in told,
        "the restore and its undo are listed": told.count("replaced") >= 3,
        f"it takes less than {LIMIT_SECONDS} s": took < LIMIT_SECONDS,
    }
    failed = [claim for claim, held in checks.items() if not held]
    for claim, held in checks.items():
        print("ok    " if held else "FAILED", claim)
    print(f"the quick start took {took:.0f} s")
    if failed:
        print(told)
    print(f"{len(checks) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
