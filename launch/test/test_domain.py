from __future__ import annotations

import socket

import pytest
import rclpy
from molmoact_bringup.domain import check_names_are_free, choose_domain, is_free, private_domains
from molmoact_bringup.errors import DomainBusyError
from rclpy.context import Context
from rclpy.node import Node


@pytest.fixture
def participant():
    """A node `franka_sim` in a domain of its own; the domain."""
    domain = choose_domain({}, private_domains())
    context = Context()
    rclpy.init(context=context, domain_id=domain)
    node = Node("franka_sim", context=context)
    yield domain
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_domain_of_a_running_node_is_not_free(participant):
    assert not is_free(participant)
    assert choose_domain({}, [participant, *private_domains()]) != participant


def test_domain_whose_first_participant_has_left_is_not_free():
    domain = choose_domain({}, private_domains())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second_participant:
        second_participant.bind(("", 7400 + 250 * domain + 12))
        assert not is_free(domain)


def test_node_with_one_of_our_names_is_reported_before_anything_starts(participant):
    with pytest.raises(DomainBusyError, match=f"ROS domain {participant} already has /franka_sim: stop that system"):
        check_names_are_free(participant, ["/policy", "/franka_sim"])


def test_foreign_nodes_in_the_domain_are_no_obstacle(participant):
    check_names_are_free(participant, ["/policy", "/left/franka_sim"])


def test_domain_the_user_has_set_is_taken_even_when_others_are_in_it(participant):
    assert choose_domain({"ROS_DOMAIN_ID": str(participant)}, []) == participant


@pytest.mark.parametrize("value", ["x", "-1", "233", "1.5"])
def test_domain_that_is_none_is_refused(value):
    with pytest.raises(DomainBusyError, match="ROS_DOMAIN_ID"):
        choose_domain({"ROS_DOMAIN_ID": value}, [])


def test_no_free_domain_is_an_error_not_an_endless_search():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        domain = choose_domain({}, private_domains())
        taken.bind(("", 7400 + 250 * domain + 10))
        with pytest.raises(DomainBusyError, match="no free ROS domain"):
            choose_domain({}, [domain])


def test_private_domains_are_never_the_default_one_and_each_comes_once():
    domains = list(private_domains())
    assert sorted(domains) == list(range(1, 102))
