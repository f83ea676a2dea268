"""Ports that the router forwards to us because we asked: PCP, NAT-PMP and UPnP (docs/port-mapping.md)."""
