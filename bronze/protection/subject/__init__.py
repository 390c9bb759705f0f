"""The data subject: which rows of a Bronze table are selected, and which records are about them."""
