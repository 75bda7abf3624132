"""`python -m compal`."""

from .cli import main

main()
