#!/usr/bin/env python3
"""Make the ROS wheels of a virtual environment usable for building messages.

Run by the environment's own interpreter after every installation. The wheels export CMake targets whose include
directories are those of the machine that built them; they are replaced by the ones of this interpreter and its NumPy.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILD_FARM_DIRECTORY = re.compile(r"/opt/python/cp3\d+-cp3\d+/[^;\"\s]*include(/python3\.\d+)?")


def local_directory(build_farm: re.Match[str]) -> str:
    """The include directory of this machine that a build-farm directory stands for."""
    return numpy.get_include() if "numpy" in build_farm[0] else sysconfig.get_path("include")


def main() -> None:
    prefix = Path(sys.prefix)
    for exported in prefix.glob("share/*/cmake/*.cmake"):
        text = exported.read_text()
        corrected = BUILD_FARM_DIRECTORY.sub(local_directory, text)
        if corrected != text:
            exported.write_text(corrected)
    # colcon would take the package.xml files of the wheels for packages of this workspace.
    (prefix / "COLCON_IGNORE").touch()


if __name__ == "__main__":
    main()
