from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teleop_recorder.errors import TopicError
from teleop_recorder.topics import COMPRESSIONS, TopicSpec, parse_topic

NAMES = st.from_regex(r"/?[a-z_][a-z_0-9]{0,8}(/[a-z_][a-z_0-9]{0,8}){0,3}", fullmatch=True)


@given(
    name=NAMES,
    rate=st.none() | st.integers(1, 2000),
    compression=st.none() | st.sampled_from(COMPRESSIONS),
    type_name=st.none() | st.just("sensor_msgs/msg/Image"),
    data=st.data(),
)
def test_everything_about_a_topic_in_any_order(name, rate, compression, type_name, data):
    words = [f"{rate} Hz" if rate else None, compression, type_name]
    line = "  ".join([name, *data.draw(st.permutations([word for word in words if word]))])
    assert parse_topic(line) == TopicSpec(name, rate, compression or "raw", type_name)


@given(st.text())
def test_any_other_text_is_refused_with_the_line_in_the_message(line):
    try:
        parse_topic(line)
    except TopicError as error:
        assert repr(line) in str(error)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("", "'' is not the name of a topic"),
        ("camera/1front 20 Hz", "'camera/1front' is not the name"),
        ("camera/front png", "'png' is no rate"),
        ("camera/front 20", "'20' is no rate"),
        ("camera/front 20 Hz 30 Hz", "says both 20 and 30"),
        ("camera/front raw jpeg", "says both raw and jpeg"),
        ("camera/front 0 Hz", "a topic that may be silent has no rate"),
        ("camera/front sensor_msgs/Image", "'sensor_msgs/Image' is no rate"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line, complaint):
    with pytest.raises(TopicError, match=complaint):
        parse_topic(line)
