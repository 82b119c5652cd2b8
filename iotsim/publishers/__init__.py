"""Where readings go: the pump, its lanes, and one module per protocol."""
