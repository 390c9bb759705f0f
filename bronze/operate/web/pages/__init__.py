"""The pages of the dashboard: each makes its content from a visit."""
