"""`python -m ray_ft` is the `ray-ft` command."""

from ray_ft.cli import main

main()
