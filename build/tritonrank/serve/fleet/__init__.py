"""A fleet on one machine: Tritons and gateways behind HAProxy, started, drained and replaced as a cluster does it."""
