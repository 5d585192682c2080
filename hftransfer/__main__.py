"""`python -m hftransfer` is the command `hftransfer`."""

from hftransfer.cli.commands import main

if __name__ == "__main__":
    main()
