"""From demonstrations to a post-trained action reasoning model."""
