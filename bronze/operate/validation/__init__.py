"""The checks of `bronze validate`: quality, schema, performance and security of a lake."""
