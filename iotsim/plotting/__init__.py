"""What the pictures share: a canvas, the readings of a field, the windows of faults."""
