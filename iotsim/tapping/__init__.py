"""The process behind a tap: one bounded store, one source per protocol."""
