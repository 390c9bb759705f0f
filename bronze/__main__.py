"""``python -m bronze``: the command line, where its script is not on the path."""

from bronze.cli.main import main

main()
