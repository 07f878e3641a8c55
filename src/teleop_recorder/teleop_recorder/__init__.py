"""Raw topics into rosbag2 directories. Nothing that is recorded is changed, but images may be compressed."""
