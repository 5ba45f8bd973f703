"""`python -m ossia` is the command line."""

from ossia.cli.start import run

if __name__ == "__main__":
    run()
