#!/bin/bash
# Build the workspace into install/ with the virtual environment's colcon. Arguments go to `colcon build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv

# Only the wheels count here, also in a shell that has sourced a system ROS or an earlier build.
unset PYTHONPATH COLCON_PREFIX_PATH COLCON_CURRENT_PREFIX ROS_DISTRO ROS_VERSION ROS_PYTHON_VERSION
unset LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv

exec {lock}>.venv/.build_lock # two terminals may run make at the same time
flock "$lock"
[ ! -d build ] || find build install -xtype l -delete # links to files that were removed from the sources fail the build
# --symlink-install: an edited Python or parameter file counts at once, without another build.
"$venv/bin/colcon" --log-level error build --symlink-install --event-handlers console_direct- \
    --cmake-args -G Ninja -DPython3_EXECUTABLE="$venv/bin/python" --no-warn-unused-cli "$@"
touch install/.built_on_wheels
