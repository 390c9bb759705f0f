"""The dashboard and the endpoints of the service. `bronze.operate.web.server.start` starts them."""
