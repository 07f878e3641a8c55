"""The harness itself: a leak here would let processes of one test disturb the next."""

import os
import sys

import pytest
from processes import Processes, wait_for

SLEEPER = "import time; print('ready', flush=True); time.sleep(1000)"
# A grandchild in a session of its own, which survives the signals sent to its parent.
ORPHANING = f"""
import subprocess, sys
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}], start_new_session=True)
"""


def test_processes_end_with_their_test(tmp_path):
    with Processes(tmp_path) as running:
        sleeper = running.start([sys.executable, "-c", SLEEPER])
        sleeper.wait_for_output("ready")
    assert sleeper.returncode is not None
    assert running.descendants() == []


def test_an_orphan_is_reported_and_killed(tmp_path):
    with pytest.raises(AssertionError, match="left behind"), Processes(tmp_path) as running:
        parent = running.start([sys.executable, "-c", ORPHANING])
        assert parent.wait() == 0
        wait_for(lambda: "ready" in parent.output, "the orphan")
        (orphan,) = running.descendants()
    wait_for(lambda: not running.descendants(), f"the end of {orphan}")


def test_a_process_that_ends_early_is_reported_with_its_output(tmp_path):
    with Processes(tmp_path) as running:
        process = running.start([sys.executable, "-c", "raise SystemExit('no such file: x.yaml')"])
        with pytest.raises(AssertionError, match="no such file: x.yaml"):
            process.wait_for_output("ready")


def test_the_domain_of_the_tests_is_not_the_default_one():
    assert os.environ["ROS_DOMAIN_ID"] not in ("", "0")
    assert os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
