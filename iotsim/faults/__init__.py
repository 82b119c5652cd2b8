"""What can be broken on purpose: on values, on the device, on the link."""
