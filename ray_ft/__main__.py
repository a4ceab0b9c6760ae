"""`python -m ray_ft` is the `ray-ft` command."""

from ray_ft.runs.interruption import end_at_once


def main() -> None:
    """Run the command; from here on SIGTERM ends it with a line, before its packages are imported too."""
    with end_at_once():
        from ray_ft.cli import main as run

        run()


if __name__ == "__main__":
    main()
