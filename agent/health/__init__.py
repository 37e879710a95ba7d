"""How the box is doing: telemetry for the fleet, metrics for collectors, a page for people."""
