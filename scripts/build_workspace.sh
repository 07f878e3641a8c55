#!/bin/bash
# Build the workspace into install/ with the virtual environment's colcon. Arguments go to `colcon build`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=$PWD/.venv

# Only the wheels count here, also in a shell that has sourced a system ROS or an earlier build.
unset PYTHONPATH COLCON_PREFIX_PATH COLCON_CURRENT_PREFIX ROS_DISTRO ROS_VERSION ROS_PYTHON_VERSION
unset LD_LIBRARY_PATH _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv

# --symlink-install: an edited Python file or parameter file counts at once, without another build.
exec "$venv/bin/colcon" --log-level error build --symlink-install --event-handlers console_direct- console_cohesion- \
    --cmake-args -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython3_EXECUTABLE="$venv/bin/python" -DBUILD_TESTING=OFF --no-warn-unused-cli \
    "$@"
