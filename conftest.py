"""Every test runs in a ROS domain nobody uses, on this machine only: a test must never reach a real arm."""

import os

from molmoact_bringup.domain import choose_domain, private_domains


def pytest_configure() -> None:
    os.environ["ROS_DOMAIN_ID"] = str(choose_domain({}, private_domains()))
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
