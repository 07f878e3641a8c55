"""The ROS domain a system runs in: chosen when the user chose none, and checked for another system of ours."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable, Mapping

from molmoact_bringup.errors import DomainBusyError

# Discovery takes 0 to 0.35 s on one machine, rarely longer.
DISCOVERY_TIME_S = 1.0
# Above 101 a domain's ports overlap those that Linux hands out by itself.
LAST_DOMAIN = 101

# DDSI-RTPS 2.5, 9.6.2: the discovery ports of a domain's participants. The first ones may have left, or numbered
# themselves from where another domain of their process ends.
_PORT_BASE, _DOMAIN_GAIN, _FIRST_PARTICIPANT, _PARTICIPANT_GAIN = 7400, 250, 10, 2
PROBED_PARTICIPANTS = 20


def is_free(domain: int) -> bool:
    """Whether no DDS participant on this machine has taken one of the first discovery ports of `domain`."""
    first = _PORT_BASE + _DOMAIN_GAIN * domain + _FIRST_PARTICIPANT
    return all(_is_unbound(first + _PARTICIPANT_GAIN * participant) for participant in range(PROBED_PARTICIPANTS))


def _is_unbound(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def choose_domain(environment: Mapping[str, str], candidates: Iterable[int]) -> int:
    """The domain of ``ROS_DOMAIN_ID``, or the first free one of `candidates` where that is not set.

    Raises:
        DomainBusyError: ``ROS_DOMAIN_ID`` is no domain, or no candidate is free.
    """
    given = environment.get("ROS_DOMAIN_ID", "")
    if given:
        if not given.isdigit() or int(given) > 232:
            raise DomainBusyError(f"ROS_DOMAIN_ID: {given!r} is no domain, expected 0..232")
        return int(given)
    for domain in candidates:
        if is_free(domain):
            return domain
    raise DomainBusyError("no free ROS domain found: set ROS_DOMAIN_ID to one that nobody uses")


def private_domains() -> Iterable[int]:
    """Every domain but the default one, from a start that differs from process to process."""
    start = os.getpid() % LAST_DOMAIN
    return (1 + (start + step) % LAST_DOMAIN for step in range(LAST_DOMAIN))


def check_names_are_free(domain: int, names: Iterable[str]) -> None:
    """Look into `domain` for nodes with one of `names` (with their namespaces).

    Raises:
        DomainBusyError: naming the nodes that run there.
    """
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node

    context = Context()
    rclpy.init(args=[], context=context, domain_id=domain)  # our own arguments are not for ROS
    try:
        node = Node("molmoact_domain_check", context=context, enable_rosout=False, start_parameter_services=False)
        deadline = time.monotonic() + DISCOVERY_TIME_S
        taken: set[str] = set()
        while time.monotonic() < deadline and not taken:
            running = {f"{space.rstrip('/')}/{name}" for name, space in node.get_node_names_and_namespaces()}
            taken = running & set(names)
            time.sleep(0.05)
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    if taken:
        raise DomainBusyError(
            f"ROS domain {domain} already has {', '.join(sorted(taken))}: "
            "stop that system, or set another ROS_DOMAIN_ID"
        )
