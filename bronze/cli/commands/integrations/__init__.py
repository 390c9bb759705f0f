"""Commands for the tools around bronze: deployments, and dbt."""
