"""NoTIP gateways: provisioned for real, encrypted, commanded; `Gateway` and `Platform`."""
