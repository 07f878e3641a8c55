"""A simulated Franka with two RealSense cameras: scene, control, gripper, cameras, tasks and a scripted operator."""

import os

# MuJoCo picks its OpenGL back end once, on first import; software rendering is the one that works on every machine.
os.environ.setdefault("MUJOCO_GL", "osmesa")
