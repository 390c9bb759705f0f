"""The relay that connects connectorx over TLS as libpq does, which connectorx cannot."""
