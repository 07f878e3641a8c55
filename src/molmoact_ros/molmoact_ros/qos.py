"""Quality of service, by name, so that both ends of a topic read alike."""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

RELIABILITIES = ("reliable", "best_effort")


def qos_profile(reliability: str = "reliable", depth: int = 1) -> QoSProfile:
    """A volatile keep-last profile; `reliability` is one of RELIABILITIES, as in the parameters of the nodes."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy.VOLATILE,
    )


# For streams where the newest sample is the only one that counts; it also matches a reliable publisher.
SENSOR = qos_profile("best_effort", depth=5)

# For state that a late subscriber must still hear about.
LATCHED = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
