"""`python -m ossia.eval`: lm_eval, with ossia registered as a model (`ossia.eval.harness`)."""

# pyright: reportMissingImports=false

if __name__ == "__main__":
    import sys

    from lm_eval.__main__ import cli_evaluate

    import ossia.eval.harness  # noqa: F401 - registers

    sys.exit(cli_evaluate())
