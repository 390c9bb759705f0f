"""The sections of a report; each makes its part of the page from the material."""
