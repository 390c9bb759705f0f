"""What is known of tables and sources, and the words for it: parts of the view."""
