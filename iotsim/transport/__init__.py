"""Shared connections: addresses, credentials and TLS, one place for every protocol."""
