"""How far a checkpoint's replies are from what was recorded, without a robot."""
