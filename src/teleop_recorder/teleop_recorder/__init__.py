"""Recording: raw topics into rosbag2 directories. What is recorded is never changed, except that images may be compressed."""
