"""Hostile bytes over the wire, from one tenant, while another trains."""
