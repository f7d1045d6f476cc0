"""`python -m fellrec`: the same as the command `fellrec`."""

from fellrec.cli import app

if __name__ == "__main__":
    app(prog_name="fellrec")
