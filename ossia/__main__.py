"""`python -m ossia` is the command line."""

from ossia.cli.main import run

if __name__ == "__main__":
    run()
