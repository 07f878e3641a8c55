# shellcheck shell=sh
# `. ./env.sh` gives this shell the built workspace: bash and zsh from anywhere, another POSIX shell from the repository's root.
#
# After `make setup` the workspace runs on the ROS of .venv, and a system ROS sourced earlier is taken off the paths: two
# installations of rclpy do not mix. After `colcon build` against a system ROS, that one is used.

if [ -n "${BASH_VERSION:-}" ]; then
    _root=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
elif [ -n "${ZSH_VERSION:-}" ]; then
    eval '_root=${${(%):-%x}:A:h}'
else
    _root=$PWD
fi

_without_system_ros() {
    printf '%s' "$1" | tr ':' '\n' | grep -v '^/opt/ros/' | paste -s -d : -
}

_source() {
    if [ -n "${ZSH_VERSION:-}" ]; then
        emulate sh -c ". '$1'"
    else
        . "$1"
    fi
}

if [ -e "$_root/install/.built_on_wheels" ]; then
    if [ -n "${ROS_DISTRO:-}" ]; then
        for _name in PATH PYTHONPATH LD_LIBRARY_PATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH; do
            eval "_value=\$(_without_system_ros \"\${$_name:-}\")"
            [ -n "$_value" ] && eval "export $_name=\$_value" || unset "$_name"
        done
        unset ROS_DISTRO _name _value
    fi
    export VIRTUAL_ENV="$_root/.venv"
    export AMENT_PREFIX_PATH="$VIRTUAL_ENV${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}"
    export CMAKE_PREFIX_PATH="$VIRTUAL_ENV${CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}"
    export PATH="$VIRTUAL_ENV/bin:$PATH"
    _source "$_root/install/local_setup.sh"
elif [ -e "$_root/install/setup.sh" ]; then
    _source "$_root/install/setup.sh"
else
    echo "env.sh: the workspace in $_root is not built: run 'make setup', or 'colcon build' with a system ROS sourced" >&2
fi

# One machine, large images, no window: each can be set beforehand.
export FASTRTPS_DEFAULT_PROFILES_FILE="${FASTRTPS_DEFAULT_PROFILES_FILE:-$_root/config/fastdds.xml}"
export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
export MUJOCO_GL="${MUJOCO_GL:-osmesa}"

unset _root
unset -f _without_system_ros _source
