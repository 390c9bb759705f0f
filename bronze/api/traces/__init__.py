"""OpenTelemetry: the traces of runs and streams."""
