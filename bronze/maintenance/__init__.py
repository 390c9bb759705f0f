"""Maintenance: optimize and vacuum, by command or in the background."""
