"""Where the lake is: object stores and local folders."""
