"""A checker: random operations on tables of many kinds, after which Bronze has to equal them."""
