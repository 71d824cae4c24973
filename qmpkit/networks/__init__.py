"""What carries the frames between a farm's machines."""
