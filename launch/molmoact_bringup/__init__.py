"""Bringing a system up: its graph, the two ways to start it, and the demo that runs episodes through it."""
