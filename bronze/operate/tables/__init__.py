"""The tables that the service keeps: which there are, what is asked of them, what they wait for."""
