"""The line: cameras send frames over ZeroMQ, the daemon answers each trigger with exactly one verdict by its deadline."""
