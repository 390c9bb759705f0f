"""Personal data: protected values, their keys, and the erasure of a person."""
