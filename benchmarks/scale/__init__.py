"""A Dask cluster in network namespaces, a model of its rates, and the driver's limits."""
